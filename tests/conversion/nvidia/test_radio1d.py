"""RADIO1D there and back: every kind that NVIDIA's code can build, and what it cannot."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_radio1d import build_radio1d

from conversion.from_nvidia import convert
from conversion.to_nvidia import radio1d_arguments, radio1d_key, training_file_content
from conversion.verification import radio1d_outputs
from modeling_radio import RadioConfig, RadioModel


KINDS = {
    "plain": {},
    "two mergings": {"downscale_levels": [0, 2], "decoder_depth": 3, "decoder_upscale_levels": [1, 2]},
    "three mergings": {
        "downscale_levels": [0, 1, 2],
        "decoder_depth": 4,
        "decoder_upscale_levels": [1, 2, 3],
        "hidden_size": 8,
    },
    "normed": {"qk_norm": True, "use_final_norm": True, "use_layer_scale": True, "layerscale_value": 0.5},
    "progressive": {"progressive_reduction": True, "qkv_bias": False, "num_registers": 6},
    "odd width": {"mlp_ratio": 3.74, "merged_intermediate_sizes": [119], "filler_grid_size": 3},
}


@pytest.fixture(params=list(KINDS))
def model(request) -> RadioModel:
    model = build_radio1d(**KINDS[request.param])
    for name, tensor in model.named_parameters():
        torch.nn.init.normal_(tensor, std=0.3) if "norm" in name or "grandma" in name else None
    return model


def outputs(model: RadioModel) -> list[torch.Tensor]:
    torch.manual_seed(1)
    batch = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        out = model(batch, num_tokens=1, adaptor_names=[])
    return [out.summary, out.features, out.global_tokens, out.global_summary]


def write(model: RadioModel, path) -> dict:
    content = training_file_content(model)
    torch.save(content, path)
    return content


def test_there_and_back(model, tmp_path):
    content = write(model, tmp_path / "file.pth.tar")
    assert not any("grandma" in key for key in content["state_dict"])
    again = convert(tmp_path / "file.pth.tar")
    assert all(torch.equal(*pair) for pair in zip(outputs(model), outputs(again), strict=True))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.config.all_adaptor_names == model.config.all_adaptor_names


def test_the_hub_layout_opens_directly_and_by_conversion(model, tmp_path):
    content = training_file_content(model)
    args = {name: value for name, value in vars(content["args"]).items() if "dtype" not in name}
    backbone = "base_model."
    tensors = {
        key.replace(backbone, "radio_model.model.").replace("input_cond", "radio_model.input_cond"): tensor
        for key, tensor in content["state_dict"].items()
        if key.startswith((backbone, "input_cond"))
    }
    tensors["radio_model.summary_idxs"] = torch.tensor(model.config.summary_idxs)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"args": args, "adaptor_names": None, "adaptor_configs": {}}))
    for again in (RadioModel.from_pretrained(tmp_path).eval(), convert(tmp_path)):
        for left, right in zip(outputs(model), outputs(again), strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def test_keys_of_layer_scale():
    assert radio1d_key("base_model.blocks.3.ls1.grandma") == "base_model.blocks.3.ls1.gamma"
    assert radio1d_key("_feature_projections.0.blocks.3.ls1.gamma") == "_feature_projections.0.blocks.3.ls1.gamma"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 8}, "NVIDIA's RADIO1D has `patch_size` 16"),
        ({"merged_intermediate_sizes": [100]}, r"`merged_intermediate_sizes` must be \[64, 128\] .* got \[64, 100\]"),
    ],
)
def test_what_nvidia_cannot_build_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        radio1d_arguments(build_radio1d(**fields).config)


def test_a_training_file_that_lost_a_block_of_the_decoder_is_refused(tmp_path):
    content = training_file_content(build_radio1d())
    content["state_dict"] = {
        key: tensor
        for key, tensor in content["state_dict"].items()
        if not key.startswith("base_model.decoder.blocks.1.")
    }
    torch.save(content, tmp_path / "file.pth.tar")
    with pytest.raises(ValueError, match=r"The tensors do not fit the architecture. 11 missing: .*decoder.blocks.1"):
        convert(tmp_path / "file.pth.tar")


def test_outputs_by_key():
    model = build_radio1d()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    stored = {
        "64x64/image_uint8": images,
        "64x64/mixed/image_uint8": images,
        "64x64/mixed/num_tokens": torch.tensor([2]),
    }
    keys = (
        *("64x64/tokens2/encoder/features", "64x64/tokensmax/decoder/summary", "64x64/mixed/decoder/features"),
        *("64x64/tokens2/decoder_adaptors/teacher_a/summary", "64x64/tokens2/decoder_adaptors/none/summary"),
        "64x64/encoder_blocks/2/features",
    )
    found = radio1d_outputs(model, {**stored, **dict.fromkeys(keys, torch.zeros(1))})
    shapes = [None if found[key] is None else tuple(found[key].shape) for key in keys]
    assert shapes == [(1, 2, 32), (1, 32), (1, 16, 16), (1, 6), None, (1, 32, 2, 2)]


def test_a_preset_describes_itself_as_published():
    arguments = radio1d_arguments(RadioConfig.from_preset("c-radio_v4-1d-h"))
    kwargs = arguments["model_kwargs"]
    assert (kwargs["img_size"], kwargs["downscale_levels"], kwargs["decoder_upscale_levels"]) == (1024, [24], [3])
