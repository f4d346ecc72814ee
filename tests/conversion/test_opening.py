"""What an export reads is whole and sound, or refused: nothing is filled in at random, and nothing lost in silence."""

import json

import pytest
from task_models import EVERY_MODEL

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.conversion.export import main as to_onnx
from modeling_radio.conversion.opening import check_file_output
from modeling_radio.conversion.to_nvidia import main as to_nvidia
from modeling_radio.core.opening import MODELS, open_for_export
from modeling_radio.heads_radio import RadioTaskModel


HEAD = {"summary_dim": 12, "feature_dim": 8, "hidden_size": 16}


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "in")


def save_tiny(folder, kind=RadioModel):
    adaptors = [{"name": "siglip2-g", **HEAD}, {"name": "sam3", "token_index": 2, **HEAD}]
    kind(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=adaptors)).save_pretrained(folder)
    return folder


def test_every_task_model_can_be_exported_with_its_head():
    kinds = {kind for kind, _ in EVERY_MODEL.values() if issubclass(kind, RadioTaskModel)}
    assert {kind for kind in MODELS.values() if issubclass(kind, RadioTaskModel)} == kinds
    assert all(kind.__name__ == name for name, kind in MODELS.items())


@pytest.mark.parametrize("command", [to_nvidia, to_onnx])
@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: b"", lambda data: data[:-4]])
def test_damaged_files_are_one_line(damage, command, folder, tmp_path, capsys):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert command([str(folder), str(tmp_path / ("out.onnx" if command is to_onnx else "out.pth.tar"))]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{str(file)!r} is damaged" in error
    assert list(tmp_path.iterdir()) == [folder]


def test_a_head_is_left_out_with_a_word(tmp_path, capsys):
    folder = save_tiny(tmp_path / "task", RadioForImageClassification)
    assert to_nvidia([str(folder), str(tmp_path / "out.pth.tar")]) == 0
    warning = (
        f"radio convert --to nvidia: warning: {str(folder)!r} holds more than RADIO, which is left out: classifier."
    )
    assert warning in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "config.json",
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "is quantized",
        ),
        ("adapter_config.json", {}, "whole model"),
    ],
)
def test_quantized_weights_and_adapters_are_refused(file, content, message, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / file).write_text(json.dumps({**config, **content}))
    with pytest.raises(ValueError, match=message):
        open_for_export(folder)


def test_an_output_replaces_only_earlier_exports(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "folder.pth.tar").mkdir()
    (tmp_path / "old.pth.tar").touch()
    (folder / "old.pth.tar").touch()
    refused = [tmp_path / name for name in ("thesis.txt", "out.pth.tar.bak", "folder.pth.tar")]
    refused += [folder / "model.safetensors", folder / "config.json", folder, tmp_path]
    for path in refused:
        with pytest.raises(ValueError, match="`output`"):
            check_file_output(path, folder, endings=(".pth.tar",), overwrite=True)
    for path in (tmp_path / "old.pth.tar", folder / "old.pth.tar"):
        check_file_output(path, folder, endings=(".pth.tar",), overwrite=True)
        with pytest.raises(ValueError, match="exists already"):
            check_file_output(path, folder, endings=(".pth.tar",), overwrite=False)
