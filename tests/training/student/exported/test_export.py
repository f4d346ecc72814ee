from pathlib import Path

import pytest
import torch

from core.files import WriteError
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel
from training.student.export import export_student
from training.student.regularizers import add_damp, add_spectral_scales
from training.targets.phi_s import PhiS


def trained_student() -> RadioModel:
    """A student as it is in training: noise on its weights, and parametrized ones."""
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 8, "hidden_size": 8}
    student = RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=[adaptor]))
    add_damp(student, 0.1)
    add_spectral_scales(student)
    return student


def fitted_standardizer() -> PhiS:
    standardizer = PhiS(8)
    standardizer.update(torch.randn(4, 8, 5, 5) * torch.arange(1.0, 9.0).view(8, 1, 1) + 3)
    standardizer.end_step()
    standardizer.refit()
    return standardizer


def test_the_folder_answers_in_the_teachers_own_space_with_plain_weights(tmp_path: Path) -> None:
    student, standardizer, pixel_values = trained_student(), fitted_standardizer(), torch.rand(2, 3, 32, 48)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    export_student(student, {"t": standardizer}, tmp_path / "final")
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    expected = student.eval()(pixel_values, feature_format="NCHW")
    opened = RadioModel.from_pretrained(tmp_path / "final").eval()
    output = opened(pixel_values, feature_format="NCHW")
    torch.testing.assert_close(output.features, expected.features, atol=1e-5, rtol=1e-4)
    in_teachers_space = standardizer.invert(expected.adaptors["t"].features)
    torch.testing.assert_close(output.adaptors["t"].features, in_teachers_space, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.adaptors["t"].summary, expected.adaptors["t"].summary, atol=1e-5, rtol=1e-4)
    plain = RadioModel(opened.config).state_dict().keys()
    assert opened.state_dict().keys() == plain
    RadioImageProcessor.from_pretrained(tmp_path / "final")


def test_a_failed_export_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "final"
    export_student(trained_student(), {}, folder)
    written = (folder / "model.safetensors").read_bytes()

    def fail(self: RadioImageProcessor, path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(RadioImageProcessor, "save_pretrained", fail)
    with pytest.raises(WriteError, match="No space left"):
        export_student(trained_student(), {}, folder)
    assert (folder / "model.safetensors").read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
