from pathlib import Path

import pytest
from PIL import Image

from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from modeling_radio.publishing import reopen
from modeling_radio.publishing.reopen import ReopenError, reopen_elsewhere


def save(folder: Path, **fields) -> Path:
    adaptors = [
        {"name": "teacher", "hidden_size": 16, "summary_dim": 6, "feature_dim": 10},
        {"name": "words", "hidden_size": 16, "summary_dim": 6},
        {"name": "places", "hidden_size": 16, "feature_dim": 10},
    ]
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=adaptors, **fields)
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
@pytest.mark.parametrize("answers", [{}, {"return_dict": False}, {"nvidia_outputs": True}], ids=str)
def test_a_saved_folder_gives_the_same_outputs_elsewhere(tmp_path, image, answers):
    assert reopen_elsewhere(save(tmp_path / "checkpoint", **answers), image) <= reopen.TOLERANCE


@pytest.mark.slow
def test_a_new_interpreter_opens_the_folder(tmp_path, image):
    assert reopen_elsewhere(save(tmp_path / "checkpoint"), image) <= reopen.TOLERANCE


@pytest.mark.parametrize("use_final_norm", [False, True])
def test_native_transformers_is_asked_only_if_its_outputs_are_equal_and_others_are_noticed(
    tmp_path, image, monkeypatch, use_final_norm
):
    folder, asked = save(tmp_path / "checkpoint", use_final_norm=use_final_norm), []
    found = reopen._outputs_here(folder, image)
    monkeypatch.setattr(reopen, "_outputs_elsewhere", lambda *_, natively: asked.append(natively) or found)
    assert reopen_elsewhere(folder, image) == 0
    assert asked == [not use_final_norm] == ["native features" in found]
    found["teacher summary"] = found["teacher summary"] + 0.1
    with pytest.raises(ReopenError, match="teacher summary"):
        reopen_elsewhere(folder, image)


@pytest.mark.usefixtures("quick_process")
def test_a_folder_that_does_not_open_is_one_line(tmp_path, image):
    folder = save(tmp_path / "checkpoint")
    (folder / "modeling_radio.py").unlink()
    with pytest.raises(ReopenError, match=r"^[^\n]*does not open[^\n]+$"):
        reopen_elsewhere(folder, image)
