"""A package that was compiled ahead of time gives the model's outputs at any batch, height and width."""

import shutil

import pytest
import torch
from releases import needs_exporter

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.graphs.models import FlatRadio
from modeling_radio.conversion.to_aoti import check_package, main


pytestmark = needs_exporter


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a compiler for C++"
)
HEAD = {"summary_dim": 12, "feature_dim": 8, "hidden_size": 16}


def save_tiny(folder):
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=2, adaptors=[{"name": "clip", **HEAD}])
    RadioModel(config).save_pretrained(folder)
    return folder


@needs_compiler
@pytest.mark.slow
def test_a_package_is_compiled_opened_and_checked(tmp_path, capsys):
    source = save_tiny(tmp_path / "in")
    assert main([str(source), str(tmp_path / "out.pt2")]) == 0
    printed = capsys.readouterr().out
    assert "multiples of 16 px; outputs summary, features, clip_summary, clip_features" in printed
    package = torch._inductor.aoti_load_package(str(tmp_path / "out.pt2"))
    model = RadioModel.from_pretrained(source).eval()
    for shape in ((3, 3, 96, 160), (1, 3, 16, 48)):
        images = torch.rand(shape)
        with torch.no_grad():
            expected = model(images, window_size="global")
        summary, features, clip_summary, _ = package(pixel_values=images)
        torch.testing.assert_close(summary, expected.summary, rtol=0, atol=1e-4)
        torch.testing.assert_close(features, expected.features, rtol=0, atol=1e-4)
        torch.testing.assert_close(clip_summary, expected.adaptors["clip"].summary, rtol=0, atol=1e-4)
    with torch.no_grad():  # another model is told from it
        model.radio_model.model.patch_generator.pos_embed += 1
    assert check_package(FlatRadio(model, ["clip"]), tmp_path / "out.pt2")["features"].largest_difference > 0.1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out.pt2"]


def test_without_a_compiler_nothing_is_left_and_one_line_says_what_is_needed(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("modeling_radio.conversion.to_aoti.aoti_compile_and_package", fail)
    monkeypatch.setattr("modeling_radio.conversion.to_aoti.export_program", lambda wrapped: None)
    source = save_tiny(tmp_path / "in")
    assert main([str(source), str(tmp_path / "out.pt2")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "could not be compiled" in error
    assert "A CPU needs a compiler for C++ such as g++" in error
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_bad_input_is_one_line(tmp_path, capsys):
    source = save_tiny(tmp_path / "in")
    for arguments, message in (
        ([str(source), str(tmp_path / "out.so")], "`output` must end in .pt2"),
        ([str(source), str(tmp_path / "out.pt2"), "--adaptors", "clap"], "got 'clap'. Did you mean 'clip'?"),
        ([str(source), str(tmp_path / "out.pt2"), "--head", "--adaptors", "clip"], "`adaptors` must be left out with"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["in"]
