"""Weights are checked by name, brought to one data type, and folded without a change of the function."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.nvidia.tensors import (
    fold_layer_scale,
    fold_spectral,
    has_layer_scale,
    spectral_epsilon,
)


WEIGHT = "base_model.blocks.1.attn.proj.weight"
STRANGE = {
    "torch.complex64": lambda tensor: tensor.to(torch.complex64),
    "torch.float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "torch.int32": lambda tensor: tensor.int(),
    "torch.qint8": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "finite": lambda tensor: tensor.index_fill(0, torch.tensor(0), float("nan")),
    "infinity": lambda tensor: tensor.index_fill(0, torch.tensor(0), float("-inf")),
}


@pytest.mark.parametrize(
    ("most", "other"),
    [(torch.float32, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)],
)
def test_mixed_types_become_float32_with_a_word(most, other, edited):
    def edit(content):
        content["state_dict"] = {
            key: tensor.to(other if key == WEIGHT else most) if tensor.is_floating_point() else tensor
            for key, tensor in content["state_dict"].items()
        }

    path = edited("c_radio_v4_tiny", edit)
    with pytest.warns(UserWarning, match=f"written as float32: most are {most}, but {other}: {WEIGHT}"):
        model = convert(path)
    assert model.dtype == torch.float32
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    assert model.config.dtype == torch.float32


LAYER = "base_model.blocks.0.attn.qkv"


def reparametrized(layer: str, weight: torch.Tensor, norm: float, part: str = "") -> dict[str, torch.Tensor]:
    """A spectrally reparametrized layer whose effective weight has the given norm; exact singular vectors."""
    prefix = f"{layer}.parametrizations.weight.0.{part}"
    left, _, right = torch.linalg.svd(weight)
    scale = torch.tensor(norm - 0.05).expm1().log()  # softplus of it plus 0.05 is the norm
    return {
        f"{prefix}scale": scale[None, None],
        f"{prefix}_u": left[:, 0],
        f"{prefix}_v": right[0],
        f"{prefix}_sn_version": torch.tensor(2),
    }


def test_published_weights_are_reproduced(reference, training_file):
    published = load_file(reference / "radio_v2.5_tiny" / "hf" / "folded.safetensors")
    folded = fold_spectral(training_file("radio_v2.5_tiny")["state_dict"])
    assert len(published) == 4
    for key, weight in published.items():
        ours = folded[key.replace("radio_model.model.", "base_model.")]
        torch.testing.assert_close(ours, weight, rtol=0, atol=2e-7)
    assert not any("parametrizations" in key for key in folded)


def test_first_version_stores_the_norm_itself_with_copies():
    weight = torch.randn(6, 4)
    state = {f"{LAYER}.parametrizations.weight.original": weight, **reparametrized(LAYER, weight, 1.0)}
    prefix = f"{LAYER}.parametrizations.weight.0."
    del state[f"{prefix}_sn_version"]
    state[f"{prefix}scale"] = torch.full((1, 4), 3.0)
    folded = fold_spectral(state)[f"{LAYER}.weight"]
    assert torch.linalg.matrix_norm(folded, 2).item() == pytest.approx(3.0, rel=1e-5)


def test_other_parametrizations_are_left_to_be_refused():
    weight = torch.randn(6, 4)
    state = {f"{LAYER}.parametrizations.weight.original": weight, f"{LAYER}.parametrizations.weight.1.mask": weight}
    assert fold_spectral(state).keys() == {f"{LAYER}.weight", f"{LAYER}.parametrizations.weight.1.mask"}


def test_epsilon_follows_the_arguments():
    assert spectral_epsilon({"spectral_reparam": True}) == 1e-6
    assert spectral_epsilon({"spectral_reparam": {"n_power_iterations": 1}}) == 1e-12
    assert spectral_epsilon({"spectral_reparam": {"eps": 1e-3}}) == 1e-3


@pytest.mark.parametrize("layer", ["mlp.fc2", "mlp.w3"])
def test_layer_scale_folds_into_the_layer_before(layer):
    prefix, tokens = "radio_model.model.blocks.11.", torch.randn(5, 4)
    linear, scale = nn.Linear(4, 3), torch.randn(3)
    head = {"radio_model.adaptors.x.feat_mlp.blocks.0.ls2.grandma": torch.ones(3)}
    state = {f"{prefix}{layer}.weight": linear.weight, f"{prefix}{layer}.bias": linear.bias,
             f"{prefix}ls2.grandma": scale, **head}  # fmt: skip
    assert has_layer_scale(state)
    folded = fold_layer_scale(state)
    assert not has_layer_scale(folded)
    output = F.linear(tokens, folded[f"{prefix}{layer}.weight"], folded[f"{prefix}{layer}.bias"])
    torch.testing.assert_close(output, linear(tokens) * scale)
    assert folded.keys() - head.keys() == {f"{prefix}{layer}.weight", f"{prefix}{layer}.bias"}


def test_layer_scale_of_ones_changes_no_bit():
    weight = torch.randn(3, 4).bfloat16()
    state = {"radio_model.model.blocks.0.attn.proj.weight": weight,
             "radio_model.model.blocks.0.ls1.grandma": torch.ones(3)}  # fmt: skip
    folded = fold_layer_scale(state)["radio_model.model.blocks.0.attn.proj.weight"]
    assert folded.dtype == torch.bfloat16
    assert torch.equal(folded, weight)


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_are_no_weights_are_refused_by_name(kind, edited):
    def edit(content):
        content["state_dict"][WEIGHT] = STRANGE[kind](content["state_dict"][WEIGHT])

    with pytest.raises(ValueError, match=rf"{kind}.*: {WEIGHT}"):
        convert(edited("c_radio_v4_tiny", edit))


@pytest.mark.parametrize(("layer", "parts"), [(LAYER, 3), ("base_model.inner.blocks.0.mlp.w12", 2)])
def test_parts_have_norms_of_their_own_and_one_may_have_none(layer, parts):
    weight = torch.randn(12, 4)
    state = {f"{layer}.parametrizations.weight.original": weight}
    for index, norm in ((0, 0.5), (1, 2.0)):
        state |= reparametrized(layer, weight.chunk(parts)[index], norm, f"parts.{index}.")
    first, second, *others = fold_spectral(state)[f"{layer}.weight"].chunk(parts)
    assert torch.linalg.matrix_norm(first, 2).item() == pytest.approx(0.5, rel=1e-5)
    assert torch.linalg.matrix_norm(second, 2).item() == pytest.approx(2.0, rel=1e-5)
    assert all(torch.equal(value, weight.chunk(3)[2]) for value in others)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("0._v", None),
        ("0._v", lambda tensor: tensor[:1]),
        ("0._v", lambda tensor: tensor[None]),
        ("original", lambda tensor: tensor[0]),
    ],
)
def test_damaged_parametrizations_are_refused_by_name(part, change):
    weight = torch.randn(6, 4)
    state = {f"{LAYER}.parametrizations.weight.original": weight, **reparametrized(LAYER, weight, 1.7)}
    tensor = state.pop(f"{LAYER}.parametrizations.weight.{part}")
    if change is not None:
        state[f"{LAYER}.parametrizations.weight.{part}"] = change(tensor)
    with pytest.raises(ValueError, match=rf"{LAYER}\.parametrizations\.weight\.{part}"):
        fold_spectral(state)


@pytest.mark.parametrize("width", [1, 3])  # one of width 1 would be broadcast
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_layer_scale_of_another_width_is_refused_by_name(kind, width):
    block = "radio_model.model.blocks.0"
    state = {f"{block}.ls1.grandma": torch.ones(width), f"{block}.attn.proj.{kind}": torch.ones(6, 6)}
    with pytest.raises(ValueError, match=r"`radio_model\.model\.blocks\.0\.ls1\.grandma`"):
        fold_layer_scale(state)
