"""The file of what a student learned from."""

from dataclasses import replace
from pathlib import Path

import pytest

from modeling_radio.metrics.results import Source
from modeling_radio.model_cards.lineage import FILE, Lineage


SAM3 = Source("sam3", "features (1024)", "SAM License", "facebook/sam3", hub_id="facebook/sam3")
START = Source("start", "weights", "Apache-2.0", "facebook/dinov2-small", hub_id="facebook/dinov2-small")
IMAGES = Source("org/images", "training: images", "see its origin", "Hugging Face Hub, org/images", hub_id="org/images")


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    lineage = Lineage([SAM3], [START], [IMAGES])
    lineage.save(tmp_path)
    assert Lineage.find(tmp_path) == lineage
    assert Lineage.find(tmp_path / "nowhere") == Lineage()
    (tmp_path / FILE).write_text('{"teachers": [{"name": "x"}], "students": 1}')
    with pytest.raises(ValueError, match=r"learned_from\.json .*students"):
        Lineage.find(tmp_path)


def test_a_students_student_sees_both_through_it() -> None:
    through = Lineage([SAM3], [START], [IMAGES]).followed_through("radio")
    assert [(each.name, each.role, each.license) for each in through.teachers] == [
        ("radio: sam3", "teacher of radio", "SAM License"),
        ("radio: start", "teacher of radio", "Apache-2.0"),
    ]
    assert through.teachers[0].hub_id == "facebook/sam3"
    assert through.images == [replace(IMAGES, name="radio: org/images", role="images of radio")]
    assert not through.weights


def test_what_was_known_stays_and_what_is_new_is_added() -> None:
    licensed, again = replace(SAM3, license="unknown"), replace(SAM3, role="summary (8)")
    joined = Lineage([SAM3], [], [IMAGES]).joined(Lineage([licensed, again], [START], [IMAGES]))
    assert joined == Lineage([SAM3, again], [START], [IMAGES])
