"""timm's independent implementation, exported to NVIDIA's key names, agrees with ours."""

from argparse import Namespace

import pytest
import torch

from modeling_radio.conversion.from_nvidia import convert


timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")
SHRUNK = {"embed_dim": 48, "depth": 3, "num_heads": 4}
TEACHERS = {"v3": ["clip", "siglip2-g", "dino_v2", "sam"], "v4": ["siglip2-g", "dino_v3", "sam3"]}
# timm's list of published models with aligned corners in the position table.
ALIGNED = ("base_patch16_radio_v3", "huge_patch16_radio_v3")
NAMES = [
    *("naflexvit_base_patch16_radio_v3", "naflexvit_large_patch16_radio_v3", "naflexvit_huge_patch16_radio_v3"),
    *("naflexvit_giant_patch16_radio_v3", "naflexvit_so400m_patch16_radio_v4", "naflexvit_huge_patch16_radio_v4"),
]


def random_model(name: str, **kwargs) -> torch.nn.Module:
    if name not in timm.list_models("*radio*"):
        pytest.skip(f"this timm has no {name}")
    model = timm.create_model(name, **SHRUNK, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for key, parameter in model.named_parameters():
            if "norm" in key and key.endswith("weight"):
                parameter.add_(1)
    return model


def to_nvidia_file(state: dict, name: str, path) -> None:
    teachers = TEACHERS[name[-2:]]
    prefix = torch.cat([state["cls_token"], state["reg_token"]], dim=1)[0]
    tensors = {
        "base_model.patch_generator.embedder.weight": state["proj.weight"].flatten(1),
        "base_model.patch_generator.pos_embed": state["pos_embed"].reshape(1, -1, SHRUNK["embed_dim"]),
        "base_model.patch_generator.cls_token.token": prefix,
        "input_conditioner.norm_mean": torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1),
        "input_conditioner.norm_std": torch.tensor([0.27, 0.26, 0.28]).view(3, 1, 1),
    }
    for key, value in state.items():
        if key.startswith("blocks."):
            tensors[f"base_model.{key.replace('.gamma', '.grandma')}"] = value
    args = Namespace(
        model="vit_base_patch16_224",
        model_kwargs=dict(SHRUNK),
        cpe_max_size=2048,
        cls_token_per_teacher=True,
        register_multiple=len(prefix),
        teachers=[{"name": teacher, "use_summary": not teacher.startswith("sam")} for teacher in teachers],
    )
    torch.save({"state_dict": tensors, "args": args}, path)


@pytest.mark.parametrize("name", NAMES)
def test_timm_naflex_model_agrees(name, tmp_path):
    theirs = random_model(name)
    state = {key.removeprefix("embeds."): value for key, value in theirs.state_dict().items()}
    torch.nn.init.zeros_(theirs.embeds.proj.bias)  # published models have none
    patches = state["proj.weight"].unflatten(1, (16, 16, 3)).permute(0, 3, 1, 2)  # this one puts channels last
    state["proj.weight"] = patches
    to_nvidia_file(state, name, tmp_path / "timm.pth.tar")
    aligned = any(part in name for part in ALIGNED)
    ours = convert(tmp_path / "timm.pth.tar", overrides={"pos_embed_align_corners": aligned})
    assert ours.config.use_layer_scale is False  # folded where timm has it
    for height, width in ((64, 64), (96, 160), (240, 48)):
        images = torch.rand(2, 3, height, width)
        with torch.no_grad():
            expected = theirs.forward_features(ours.radio_model.input_conditioner(images))
            output = ours(images).last_hidden_state
        scale = expected.abs().max()
        torch.testing.assert_close(output / scale, expected / scale, rtol=0, atol=1e-4)
    if aligned:
        other = convert(tmp_path / "timm.pth.tar")
        with torch.no_grad():  # the flag is what makes them agree
            assert (other(images).last_hidden_state - output).abs().max() > 0.01


@pytest.mark.parametrize("name", ["vit_base_patch16_radio_v3", "vit_so400m_patch16_radio_v4"])
def test_timm_fixed_size_model_agrees(name, tmp_path):
    """At its own image size timm's position table is used as it is."""
    theirs = random_model(name, img_size=64)
    state = theirs.state_dict()
    state = {key.removeprefix("patch_embed."): value for key, value in state.items()}
    torch.nn.init.zeros_(theirs.patch_embed.proj.bias)
    to_nvidia_file(state, name, tmp_path / "timm.pth.tar")
    ours, images = convert(tmp_path / "timm.pth.tar"), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features(ours.radio_model.input_conditioner(images))
        output = ours(images).last_hidden_state
    scale = expected.abs().max()
    torch.testing.assert_close(output / scale, expected / scale, rtol=0, atol=1e-4)
