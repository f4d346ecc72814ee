import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from model_cards.build import write_card
from model_cards.licenses import License
from training.extraction import card, run
from training.extraction.card import CARD, MADE, finish, inherited_license


@pytest.fixture
def made(settings):
    """Return a function that extracts, finishes and returns the card."""

    def call(**values):
        extraction = run.open_extraction(settings(**values))
        finish(extraction, run.extract(extraction))
        return DatasetCard.load(extraction.settings.output / CARD)

    return call


def usage(card):
    return "\n".join(re.findall(r"```python\n(.*?)```", card.content, re.DOTALL))


def run_usage(card, folder, monkeypatch, capsys):
    """Run the card's code on the folder in place of the Hub; return what it prints."""
    import huggingface_hub

    def download(name, file, repo_type):
        assert (name, repo_type) == (str(folder), "dataset")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    exec(compile(usage(card).replace("ORG/NAME", str(folder)), "card", "exec"), {})
    return capsys.readouterr().out.splitlines()


def test_the_card_says_what_is_there(made, tmp_path):
    card = made(dense=True, adaptors=["teacher_a"], dtype="int8", license="cc-by-4.0", model_id="org/radio-tiny")
    data = card.data.to_dict()
    assert (data["license"], data["base_model"]) == ("cc-by-4.0", "org/radio-tiny")
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["image-feature-extraction"]
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    text = card.content
    assert "[org/radio-tiny](https://huggingface.co/org/radio-tiny)" in text
    assert "| train | 23 |" in text
    for row in (
        "| `label` | class |  | copied from the source: one of 2 classes |",
        "| `summary` | int8 | (32,) | what the model says of the whole image |",
        r"| `features` | int8 | (rows \* cols \* 16,) |",
        "| `teacher_a/summary` | int8 | (6,) | what the model says of the whole image, by the adaptor for teacher_a |",
        r"| `features_scale` | float32 | (rows \* cols,) | by which features is multiplied to come back |",
    ):
        assert row in text
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text
    hashed = json.loads((tmp_path / "out" / "extraction.json").read_text())["model"]["weights and processor"]
    assert f"| model | {hashed} (hash" in text


@pytest.mark.parametrize(
    ("values", "printed"),
    [
        ({}, ["cat/01.png (32,)"]),
        ({"dense": True, "dtype": "float16"}, ["cat/01.png (32,)", "(4, 4, 16)"]),
        (
            {"dense": True, "pca": 4, "dtype": "int8", "layout": "nested"},
            ["cat/01.png (32,)", "(4, 4, 4)", "(4, 4, 16)"],
        ),
    ],
)
def test_its_code_runs(made, settings, tmp_path, monkeypatch, capsys, values, printed):
    values = {"size": 32, **values}
    shown = run_usage(made(**values), tmp_path / "out", monkeypatch, capsys)
    assert shown == printed


def test_its_code_finds_similar_images(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    shown = run_usage(made(index="flat"), tmp_path / "out", monkeypatch, capsys)
    assert shown[1].startswith("[('cat/01.png', ")
    assert shown[1].count(".png") == 5


def test_the_license_is_inherited(made, checkpoint, tmp_path):
    assert made(output=tmp_path / "without").data.license is None
    licensed = shutil.copytree(checkpoint, tmp_path / "licensed")
    other = License("other", "my-license", "https://example.org/license")
    write_card(licensed, license=other)
    data = made(checkpoint=licensed).data
    assert (data.license, data.license_name, data.license_link) == ("other", other.name, other.link)
    assert inherited_license(licensed, tmp_path / "nowhere") == other
    made(checkpoint=licensed, license="mit")
    assert made(checkpoint=licensed).data.license == "mit"  # that of a card which was there


def test_checkpoints_of_nvidia_have_its_license(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"args": {}, "version": "c-radio_v4-h"}))
    license = inherited_license(tmp_path, tmp_path)
    assert license is not None
    assert license.name == "nvidia-open-model-license"


def test_an_edited_card_stays_unless_something_is_new(made, tmp_path):
    made()
    path = tmp_path / "out" / CARD
    path.write_text(path.read_text() + "\nMore.\n")
    assert "More." in made().content
    assert "More." not in made(license="mit").content
    (tmp_path / "out" / "data" / "train-00001-of-00005.parquet").unlink()
    path.write_text(path.read_text() + "\nMore.\n")
    assert "More." not in made().content


def test_a_card_that_is_written_later_tells_what_the_rows_were_made_on(made, tmp_path, monkeypatch):
    before = made().content
    later = {"date": "2099-01-01 00:00 UTC", "machine": "another", "versions": {"torch": "9.9"}}
    monkeypatch.setattr(card, "describe_run", lambda command, clock: later)
    rows = re.findall(r"^\| (?:machine|speed|versions|date) \|.*", before, re.MULTILINE)
    assert len(rows) == 4
    text = made(license="mit").content
    assert all(row in text for row in rows)
    (tmp_path / "out" / MADE).unlink()  # as of data sets that are older
    assert not any(word in made(license="mit").content for word in ("| date |", "2099", "another"))
