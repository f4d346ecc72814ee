"""What an export reads is whole and sound, or refused: nothing is filled in at random, and nothing lost in silence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_models import EVERY_MODEL

from conversion.opening import TASK_MODELS, check_file_output, open_model
from conversion.to_nvidia import main as to_nvidia
from conversion.to_onnx import main as to_onnx
from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.heads_radio import RadioTaskModel


HEAD = {"summary_dim": 12, "feature_dim": 8, "hidden_size": 16}
WEIGHT = "radio_model.model.blocks.0.attn.proj.weight"


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "in")


def save_tiny(folder, kind=RadioModel):
    adaptors = [{"name": "siglip2-g", **HEAD}, {"name": "sam3", "token_index": 2, **HEAD}]
    kind(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=adaptors)).save_pretrained(folder)
    return folder


def test_every_task_model_can_be_exported_with_its_head():
    kinds = {kind for kind, _ in EVERY_MODEL.values() if issubclass(kind, RadioTaskModel)}
    assert set(TASK_MODELS.values()) == kinds
    assert all(kind.__name__ == name for name, kind in TASK_MODELS.items())


def drop_adaptor(tensors):
    for key in [key for key in tensors if "adaptors.sam3" in key]:
        del tensors[key]


DAMAGES = {
    "missing": (lambda tensors: tensors.pop(WEIGHT), f"1 missing: {WEIGHT}"),
    "without adaptor": (drop_adaptor, r"\d+ missing: radio_model\.adaptors\.sam3\."),
    "unknown": (lambda tensors: tensors.update({f"{WEIGHT}s": torch.ones(3)}), f"1 unknown: {WEIGHT}s"),
    "misshapen": (lambda tensors: tensors.update({WEIGHT: torch.ones(3, 3)}), rf"{WEIGHT} \(3, 3\) instead of"),
    "nan": (lambda tensors: tensors[WEIGHT].view(-1)[:1].fill_(float("nan")), f"1 hold NaN or infinity: {WEIGHT}"),
    "integers": (
        lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT].to(torch.int8)}),
        f"{WEIGHT} of I8",
    ),
    "complex": (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT] + 0j}), f"1 are not: {WEIGHT} of C64"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_by_name(damage, folder):
    edit, message = DAMAGES[damage]
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        open_model(folder)


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


def test_quantized_weights_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is quantized, which no other format has"):
        open_model(folder)


def test_an_adapter_is_refused_and_not_left_out(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a whole model, got the adapter"):
        open_model(folder)


def test_a_head_is_left_out_with_a_word(tmp_path, capsys):
    folder = save_tiny(tmp_path / "task", RadioForImageClassification)
    assert to_nvidia([str(folder), str(tmp_path / "out.pth.tar")]) == 0
    warning = f"to_nvidia: warning: {str(folder)!r} holds more than RADIO, which is left out: classifier."
    assert warning in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("name", ["thesis.txt", "weights", "out.pth.tar.bak"])
def test_what_no_export_writes_is_kept(name, folder, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"`output` must end in \.pth\.tar, got '.*'\. Name another output\."):
        check_file_output(tmp_path / name, folder, endings=(".pth.tar",), overwrite=True)
    with pytest.raises(ValueError, match="exists already"):
        check_file_output(tmp_path / name, folder, endings=(".pth.tar",), overwrite=False)


def test_a_folder_is_kept(folder, tmp_path):
    (tmp_path / "out.pth.tar").mkdir()
    with pytest.raises(ValueError, match="`output` must be a file, got the folder"):
        check_file_output(tmp_path / "out.pth.tar", folder, endings=(".pth.tar",), overwrite=True)
