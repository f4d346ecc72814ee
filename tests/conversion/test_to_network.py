"""The network alone, opened by its own library, gives the features of the checkpoint around it."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_networks import TwoMaps, build_wrapped
from transformers import AutoImageProcessor, AutoModel

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.to_network import main


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["ConvNeXt", "Swin", "DINOv2", "class"])
def converted(request, tmp_path, capsys):
    model = build_wrapped(request.param)
    model.save_pretrained(tmp_path / "radio")
    assert main([str(tmp_path / "radio"), str(tmp_path / "network")]) == 0, capsys.readouterr().err
    return request.param, model, tmp_path / "network"


@torch.no_grad()
def test_the_library_opens_it_with_equal_features(converted):
    name, model, folder = converted
    stride = model.config.patch_size
    images = torch.rand(1, 3, 2 * stride, 4 * stride)
    pixels, expected = model.radio_model.input_conditioner(images), model(images, feature_format="NCHW").features
    if name == "DINOv2":
        tokens = AutoModel.from_pretrained(folder).eval()(pixels).last_hidden_state
        assert torch.equal(tokens[:, 1:], expected.flatten(2).transpose(1, 2))
        assert list(AutoImageProcessor.from_pretrained(folder).image_mean) == model.config.norm_mean
    elif name == "class":
        network = TwoMaps(**json.loads((folder / "config.json").read_text())["arguments"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
        for found, own in zip(network.eval()(pixels), model.radio_model.model.network(pixels), strict=True):
            assert torch.equal(found, own)
    else:
        arguments = {"num_classes": 0, **model.config.wrapped["arguments"]}
        file = folder / "model.safetensors"
        opened = timm.create_model(model.config.wrapped["name"], checkpoint_path=str(file), **arguments)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True)
        for network in (opened, again):
            maps = network.eval().forward_features(pixels)
            assert torch.equal(maps.movedim(-1, 1) if name == "Swin" else maps, expected)
        assert list(again.pretrained_cfg["mean"]) == model.config.norm_mean


def test_only_networks_of_libraries_are_converted(tmp_path, capsys):
    RadioModel(RadioConfig.from_preset("radio-test")).save_pretrained(tmp_path / "radio")
    assert main([str(tmp_path / "radio"), str(tmp_path / "network")]) == 1
    assert "`checkpoint`" in capsys.readouterr().err
    assert not (tmp_path / "network").exists()


def test_timm_and_nvidias_layouts_are_refused(tmp_path, capsys):
    from modeling_radio.conversion import to_nvidia, to_timm

    build_wrapped("ConvNeXt").save_pretrained(tmp_path / "radio")
    for command, name in ((to_timm, "out"), (to_nvidia, "out.pth")):
        assert command.main([str(tmp_path / "radio"), str(tmp_path / name)]) == 1
        assert "wrapped" in capsys.readouterr().err
