from pathlib import Path

import pytest
from PIL import Image

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from training.student import reopen
from training.student.reopen import ReopenError, reopen_elsewhere


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return save(tmp_path / "checkpoint")


def save(folder: Path, **fields) -> Path:
    config = RadioConfig.from_preset(
        "radio-test",
        num_hidden_layers=2,
        adaptors=[
            {"name": "teacher", "hidden_size": 16, "summary_dim": 6, "feature_dim": 10},
            {"name": "words", "hidden_size": 16, "summary_dim": 6},
            {"name": "places", "hidden_size": 16, "feature_dim": 10},
        ],
        **fields,
    )
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def image() -> Image.Image:
    return Image.effect_noise((70, 64), 60).convert("RGB")


@pytest.fixture
def quick_process(monkeypatch, elsewhere):
    """Let the new process be a fork of one that has imported transformers."""
    monkeypatch.setattr(reopen.subprocess, "run", elsewhere.run_command)


@pytest.mark.usefixtures("quick_process")
@pytest.mark.parametrize("return_dict", [True, False])
def test_a_saved_folder_gives_the_same_outputs_elsewhere(tmp_path, image, return_dict):
    checkpoint = save(tmp_path / "checkpoint", return_dict=return_dict)
    assert reopen_elsewhere(checkpoint, image) <= reopen.TOLERANCE


@pytest.mark.slow
def test_a_new_interpreter_opens_the_folder(checkpoint, image):
    assert reopen_elsewhere(checkpoint, image) <= reopen.TOLERANCE


@pytest.mark.parametrize("use_final_norm", [False, True])
def test_native_transformers_is_asked_only_where_it_gives_equal_outputs(tmp_path, image, monkeypatch, use_final_norm):
    folder, asked = save(tmp_path / "checkpoint", use_final_norm=use_final_norm), []

    def answer(checkpoint, image, *, natively):
        asked.append(natively)
        return reopen._outputs_here(checkpoint, image)

    monkeypatch.setattr(reopen, "_outputs_elsewhere", answer)
    assert reopen_elsewhere(folder, image) == 0
    assert asked == [not use_final_norm]
    assert ("native features" in reopen._outputs_here(folder, image)) == (not use_final_norm)


def test_other_outputs_are_noticed(checkpoint, image, monkeypatch):
    expected = reopen._outputs_here(checkpoint, image)
    found = expected | {"teacher summary": expected["teacher summary"] + 0.1}
    monkeypatch.setattr(reopen, "_outputs_elsewhere", lambda checkpoint, image, natively: found)
    with pytest.raises(ReopenError, match="gives another teacher summary"):
        reopen_elsewhere(checkpoint, image)


@pytest.mark.usefixtures("quick_process")
def test_a_folder_that_does_not_open_is_one_line(checkpoint, image):
    (checkpoint / "modeling_radio.py").unlink()
    with pytest.raises(ReopenError, match="does not open in a new process: ") as raised:
        reopen_elsewhere(checkpoint, image)
    assert "\n" not in str(raised.value)
