"""What the app answers for any backbone."""

import numpy as np
import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from training.app.answers import TIMED_RUNS, Explorer
from training.app.opening import open_model


def test_every_space_is_drawn(explorer, photograph):
    told = []
    pictures, said = explorer.features(photograph, 128, "off", lambda share, text: told.append((share, text)))
    assert [caption for _, caption in pictures] == [
        "backbone, 32 dimensions",
        "siglip2-g, 16 dimensions",
        "dino_v2, 24 dimensions",
    ]
    assert {picture.size for picture, _ in pictures} == {(640, 360)}
    assert len({picture.tobytes() for picture, _ in pictures}) == 3
    assert said.startswith("224 x 128 px, 14 x 8 patches, ")
    assert said.endswith(" ms with 2 adaptors on cpu, float32.")
    assert [text for _, text in told][:2] == ["reading the photograph", "running the network"]
    assert [share for share, _ in told] == sorted(share for share, _ in told)


def test_resolution_changes_the_picture(explorer, photograph):
    coarse, fine = (explorer.features(photograph, size, "off")[0][0][0] for size in (64, 128))
    assert coarse.tobytes() != fine.tobytes()


def test_the_place_is_most_alike_itself(explorer, photograph):
    pictures, said = explorer.alike(photograph, 99, 1, 128, "off")
    assert [caption for _, caption in pictures] == ["the place", "backbone", "siglip2-g", "dino_v2"]
    for picture, _ in pictures[1:]:
        brightness = np.asarray(picture).astype(int).sum(axis=2)
        row, col = np.unravel_index(brightness.argmax(), brightness.shape)
        assert row < 360 / 8
        assert col > 640 * 13 / 14
    assert said.startswith("Patch 14 of 14 across, 1 of 8 down. ")
    corner, _ = explorer.alike(photograph, 100, 100, 128, "off")
    assert corner[1][0].tobytes() != pictures[1][0].tobytes()


def test_windows_are_compared_with_none(explorer, photograph):
    rows, pictures, said = explorer.compare_windows(photograph, 128, ["2", "off", "2", "auto"])
    assert [row[0] for row in rows] == ["off", "2", "auto"]
    assert rows[0][2:] == [1.0, 1.0]
    assert rows[1][3] < 0.99999
    assert all(row[1] > 0 for row in rows)
    assert [caption.split(",")[0] for _, caption in pictures] == ["windows: off", "windows: 2", "windows: auto"]
    assert pictures[0][0].tobytes() != pictures[1][0].tobytes()
    assert said == f"224 x 128 px on cpu, float32; median of {TIMED_RUNS} passes."


def test_it_is_said_where_windows_change_nothing(photograph, tmp_path):
    config = RadioConfig.from_preset("radio-test", vitdet_num_global=2, num_hidden_layers=2)
    RadioModel(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no effect"):
        rows, _, said = Explorer(open_model(str(tmp_path), "cpu")).compare_windows(photograph, 64, ["2"])
    assert rows[1][3] == 1.0
    assert "All 2 blocks of this model attend globally, so that windows change nothing: start the app with " in said


def test_half_precision_answers(texts, photograph):
    half = Explorer(open_model(str(texts), "cpu", "bfloat16"))
    pictures, said = half.features(photograph, 64, "off")
    assert len(pictures) == 3
    assert said.endswith("bfloat16.")
    assert half.passes.run(torch.zeros(3, 64, 64, dtype=torch.uint8), 64, None).maps["backbone"].dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 50, 50, 64, "off"), "got none"),
        (("{photograph}", 120, 50, 64, "off"), r"`across` must be a percentage in \[0, 100\], got 120"),
        (("{photograph}", 50, -1, 64, "off"), "`down` must be"),
        (("{photograph}", 50, 50, 65, "off"), "`resolution` must have sides"),
        (("{photograph}", 50, 50, 64, "few"), "`windows` must be"),
    ],
)
def test_bad_input_is_refused(explorer, photograph, arguments, message):
    arguments = [photograph if each == "{photograph}" else each for each in arguments]
    with pytest.raises(ValueError, match=message):
        explorer.alike(*arguments)
