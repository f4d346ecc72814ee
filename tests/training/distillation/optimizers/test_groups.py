import pytest
import torch

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.modeling_radio import ADAPTORS, POSITIONS, PREFIX_TOKENS
from training.distillation.optimizers import parameter_groups
from training.student.regularizers import SCALE_SUFFIX, add_spectral_scales


def build_model(**fields) -> RadioModel:
    adaptor = {"name": "t", "summary_dim": 4, "feature_dim": 4, "hidden_size": 8, "feature_head": "attention"}
    return RadioModel(RadioConfig.from_preset("radio-test", num_hidden_layers=1, adaptors=[adaptor], **fields))


def options_by_name(model: RadioModel) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1)
    grouped = [(names[id(parameter)], group) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(names), "every parameter is in one group"
    return dict(grouped)


def test_only_matrices_decay() -> None:
    options = options_by_name(build_model())
    decayed = {name for name, group in options.items() if group["weight_decay"]}
    assert {group["weight_decay"] for group in options.values()} == {0.1, 0.0}
    assert {"radio_model.model.patch_generator.embedder.weight", "radio_model.adaptors.t.summary_mlp.fc1.weight"} & (
        options.keys()
    ) <= decayed
    assert not {POSITIONS, PREFIX_TOKENS} & decayed
    assert not any(name.endswith("bias") for name in decayed)


def test_the_trunk_is_apart_from_the_adaptors() -> None:
    for name, group in options_by_name(build_model()).items():
        assert group["is_trunk"] is not name.startswith(f"{ADAPTORS}.")


@pytest.mark.parametrize("is_reparametrized", [False, True])
@pytest.mark.parametrize(
    ("use_swiglu_ffn", "expected"),
    [
        (False, {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}),
        (True, {"attn.qkv": 3, "attn.proj": 1, "mlp.w12": 2, "mlp.w3": 1}),
    ],
)
def test_matrices_are_those_of_the_trunks_blocks(
    use_swiglu_ffn: bool, expected: dict[str, int], is_reparametrized: bool
) -> None:
    model = build_model(use_swiglu_ffn=use_swiglu_ffn)
    if is_reparametrized:
        add_spectral_scales(model)
    ending = "parametrizations.weight.original" if is_reparametrized else "weight"
    counts = {name: group["num_matrices"] for name, group in options_by_name(model).items() if group["num_matrices"]}
    assert counts == {f"radio_model.model.blocks.0.{name}.{ending}": count for name, count in expected.items()}


def test_spectral_scales_decay_without_a_trust_ratio() -> None:
    model = build_model()
    add_spectral_scales(model)
    options = options_by_name(model)
    scales = [group for name, group in options.items() if name.endswith(SCALE_SUFFIX)]
    assert len(scales) == 4
    assert all(group["weight_decay"] == 0.1 and not group["use_trust_ratio"] for group in scales)
    others = [group for name, group in options.items() if not name.endswith(SCALE_SUFFIX)]
    assert all(group["use_trust_ratio"] is (group["weight_decay"] > 0) for group in others)
    assert all(isinstance(parameter, torch.Tensor) for group in others for parameter in group["params"])
