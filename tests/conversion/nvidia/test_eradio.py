"""E-RADIO goes to NVIDIA's file and back: every tensor, the arguments, and those beside the file."""

import json

import pytest
import torch
from reference_cases import REFERENCE, load_training_file
from safetensors.torch import save_file

from conversion.from_nvidia import convert
from conversion.from_nvidia import main as from_nvidia
from conversion.to_nvidia import main as to_nvidia
from conversion.to_nvidia import relative_positions, training_file_content
from conversion.verification import compare_with_reference, largest_difference
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.eradio_radio import eradio_fields
from modeling_radio.nvidia import eradio


CASE = REFERENCE / "e_radio_tiny"
ARGUMENTS = json.loads((CASE / "eradio_arguments.json").read_text())


def test_buffers_of_positions_are_the_files():
    model, state = convert(CASE / "checkpoint.pth.tar"), load_training_file("e_radio_tiny")["state_dict"]
    buffers = relative_positions(model)
    assert buffers.keys() == {key for key in state if ".relative_" in key}
    assert all(torch.equal(buffers[key], state[key]) for key in buffers)


def test_round_trip_through_a_folder(tmp_path):
    assert from_nvidia([str(CASE / "checkpoint.pth.tar"), str(tmp_path / "ours"), "--version", "e-radio_v2"]) == 0
    assert RadioConfig.from_pretrained(tmp_path / "ours").version == "e-radio_v2"
    (tmp_path / "back").mkdir()
    file = tmp_path / "back" / "model.pth.tar"
    assert to_nvidia([str(tmp_path / "ours"), str(file)]) == 0
    with torch.serialization.safe_globals([type(load_training_file("e_radio_tiny")["args"])]):
        content = torch.load(file, weights_only=True)
    theirs = load_training_file("e_radio_tiny")
    assert vars(content["args"]) == vars(theirs["args"])
    assert content["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(content["state_dict"][key], tensor) for key, tensor in theirs["state_dict"].items())
    assert json.loads((file.parent / "eradio_arguments.json").read_text()) == ARGUMENTS
    again = compare_with_reference(convert(file), CASE / "expected.safetensors")
    assert largest_difference(again) <= 1e-5


def test_a_network_of_ours_goes_there_and_back(tmp_path, capsys):
    head = {"name": "clip", "token_index": 0, "feature_dim": 8, "summary_dim": 12, "hidden_size": 16}
    model = RadioModel(RadioConfig(**eradio_fields(ARGUMENTS), adaptors=[head])).eval()
    model.save_pretrained(tmp_path / "ours")
    assert to_nvidia([str(tmp_path / "ours"), str(tmp_path / "model.pth.tar")]) == 0
    again, images = convert(tmp_path / "model.pth.tar"), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        left, right = model(images), again(images)
    assert torch.equal(left.features, right.features)
    assert torch.equal(left.adaptors["clip"].summary, right.adaptors["clip"].summary)
    other = {**ARGUMENTS, "cpb_mlp_hidden": 4}
    (tmp_path / "eradio_arguments.json").write_text(json.dumps(other))
    assert to_nvidia([str(tmp_path / "ours"), str(tmp_path / "second.pth.tar")]) == 1
    assert "holds the arguments of another E-RADIO" in capsys.readouterr().err
    assert not (tmp_path / "second.pth.tar").exists()


def test_without_its_arguments_a_file_is_refused(tmp_path):
    (tmp_path / "checkpoint.pth.tar").symlink_to(CASE / "checkpoint.pth.tar")
    with pytest.raises(
        ValueError, match=r"`args.model` must be one of .*'eradio_reference_tiny'.*eradio_arguments.json"
    ):
        convert(tmp_path / "checkpoint.pth.tar")
    (tmp_path / "eradio_arguments.json").write_text(json.dumps({**ARGUMENTS, "cpb_mlp_hidden": 4}))
    with pytest.raises(ValueError, match=r"The tensors do not fit the architecture. .*cpb_mlp"):
        convert(tmp_path / "checkpoint.pth.tar")


def write_hub_layout(folder, **changes):
    content = load_training_file("e_radio_tiny")
    state = {
        key.replace("base_model.", "radio_model.model.").replace("input_cond", "radio_model.input_cond"): tensor
        for key, tensor in content["state_dict"].items()
    }
    teachers = content["args"].teachers  # the file lists them, though the mean of the features stands for all
    places = [place for place, teacher in enumerate(teachers) if teacher.get("use_summary", True)]
    state["radio_model.summary_idxs"] = torch.tensor(places)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    args = {**vars(content["args"]), "amp_dtype": "bfloat16", "dtype": "float32", **changes}
    (folder / "config.json").write_text(json.dumps({"args": args, "version": "e-radio_v2"}))


@pytest.mark.parametrize("cpe_max_size", [None, 2048])
def test_a_hub_folder_opens(cpe_max_size, tmp_path):
    write_hub_layout(tmp_path, cpe_max_size=cpe_max_size)
    (tmp_path / "eradio_arguments.json").write_text(json.dumps(ARGUMENTS))
    comparisons = compare_with_reference(convert(tmp_path), CASE / "expected.safetensors")
    assert largest_difference(comparisons) <= 1e-5
    with pytest.raises(ValueError, match=r"convert it with conversion.from_nvidia"):
        RadioModel.from_pretrained(tmp_path)


def test_a_published_one_opens_from_the_hub_layout_itself(tmp_path, monkeypatch):
    monkeypatch.setitem(eradio.PUBLISHED, "eradio", ARGUMENTS)  # a small one in its place
    write_hub_layout(tmp_path, model="eradio")
    model, report = RadioModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    comparisons = compare_with_reference(model.eval(), CASE / "expected.safetensors")
    assert largest_difference(comparisons) <= 1e-5


def test_the_published_one_needs_no_file():
    with torch.device("meta"):  # its weights would be 1.5 GB
        content = training_file_content(RadioModel(RadioConfig.from_preset("e-radio_v2")))
    assert content["args"].model == "eradio"
    assert content["args"].cpe_max_size is None
    table = content["state_dict"][
        "base_model.levels.3.blocks.4.attention_blocks.0.attn.pos_emb_funct.relative_coords_table"
    ]
    assert table.shape == (1, 31, 31, 2)


@pytest.mark.parametrize("name", ["norm_mean", "norm_std"])
def test_a_file_without_its_normalization_is_named(name, tmp_path):
    content = load_training_file("e_radio_tiny")
    del content["state_dict"][f"input_conditioner.{name}"]
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    (tmp_path / "eradio_arguments.json").write_text(json.dumps(ARGUMENTS))
    with pytest.raises(ValueError, match=rf"damaged: it lacks .*{name}"):
        convert(tmp_path / "checkpoint.pth.tar")
