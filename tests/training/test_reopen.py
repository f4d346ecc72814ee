from pathlib import Path

import pytest
from PIL import Image

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from training import reopen
from training.reopen import ReopenError, reopen_elsewhere


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    config = RadioConfig.from_preset(
        "radio-test",
        num_hidden_layers=2,
        adaptors=[{"name": "teacher", "hidden_size": 16, "summary_dim": 6, "feature_dim": 10}],
    )
    RadioModel(config).save_pretrained(tmp_path / "checkpoint")
    RadioImageProcessor.from_model_config(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def image() -> Image.Image:
    return Image.effect_noise((70, 64), 60).convert("RGB")


def test_a_saved_folder_gives_the_same_outputs_elsewhere(checkpoint, image):
    assert reopen_elsewhere(checkpoint, image) <= reopen.TOLERANCE


def test_other_outputs_are_noticed(checkpoint, image, monkeypatch):
    expected = reopen._outputs_here(checkpoint, image)
    found = expected | {"teacher summary": expected["teacher summary"] + 0.1}
    monkeypatch.setattr(reopen, "_outputs_elsewhere", lambda checkpoint, image: found)
    with pytest.raises(ReopenError, match="gives another teacher summary"):
        reopen_elsewhere(checkpoint, image)


def test_a_folder_that_does_not_open_is_one_line(checkpoint, image):
    (checkpoint / "modeling_radio.py").unlink()
    with pytest.raises(ReopenError, match="does not open in a new process: ") as raised:
        reopen_elsewhere(checkpoint, image)
    assert "\n" not in str(raised.value)
