"""Weights that are no numbers of one kind: refused by name, or brought to one kind with a word."""

import pytest
import torch

from conversion.from_nvidia import convert, main
from conversion.nvidia.tensors import check_kinds


WEIGHT = "base_model.blocks.1.attn.proj.weight"
STRANGE = {
    "complex": (lambda tensor: tensor.to(torch.complex64), "1 of type torch.complex64"),
    "8 bits": (lambda tensor: tensor.to(torch.float8_e4m3fn), "1 of type torch.float8_e4m3fn"),
    "integers": (lambda tensor: tensor.int(), "1 of type torch.int32"),
    "truth values": (lambda tensor: tensor > 0, "1 of type torch.bool"),
    "quantized": (
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "1 of type torch.qint8",
    ),
    "sparse": (lambda tensor: tensor.to_sparse(), "1 sparse"),
    "empty": (lambda tensor: tensor[:0], "1 empty"),
    "a number": (lambda tensor: tensor[0, 0].clone(), "1 without dimensions"),
    "meta": (lambda tensor: tensor.to("meta"), "1 without values (on the meta device)"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_of_strange_kinds_are_refused_by_name(kind, edited, tmp_path, capsys):
    change, message = STRANGE[kind]

    def edit(content):
        content["state_dict"][WEIGHT] = change(content["state_dict"][WEIGHT])

    assert main([str(edited("c_radio_v4_tiny", edit)), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{message}: {WEIGHT}" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", [WEIGHT, "base_model.patch_generator.pos_embed", "input_conditioner.norm_mean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(key, value, edited, tmp_path, capsys):
    def edit(content):
        content["state_dict"][key].view(-1)[0] = value

    assert main([str(edited("c_radio_v4_tiny", edit)), str(tmp_path / "out")]) == 1
    assert f"Weights must be finite. 1 hold NaN or infinity: {key}." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_a_tensor_larger_than_what_is_stored_of_it_is_refused():
    """A pickle of a few bytes can name a tensor of any shape: one number, repeated."""
    with pytest.raises(ValueError, match="1 larger than what is stored of them: pos_embed"):
        check_kinds({"pos_embed": torch.zeros(1).expand(1, 2**40, 64)})
    check_kinds({"scale": torch.zeros(4, 1).expand(4, 4)})


def test_many_names_are_shortened():
    state = {f"weight_{index}": torch.zeros(1, dtype=torch.int8) for index in range(20)}
    with pytest.raises(ValueError, match=r"20 of type torch\.int8: weight_0, .*weight_7 and 12 more\.$"):
        check_kinds(state)
