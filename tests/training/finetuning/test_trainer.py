"""Learning rates by depth, and which part of the model stays in evaluation mode."""

import pytest
import torch
from tiny_eradio import build_eradio
from tiny_radio1d import FIELDS
from tiny_tuning import tuning_settings

from modeling_radio import RadioConfig, RadioForImageClassification
from training.finetuning.adapters import add_adapter
from training.finetuning.trainer import frozen_parts, parameter_groups


@pytest.fixture
def model():
    return RadioForImageClassification(RadioConfig.from_preset("radio-test", num_labels=3))


def rates(model, layer_decay, weight_decay=0.1):
    """Learning rate and weight decay by parameter name."""
    groups = parameter_groups(model, (1.0, 7.0), layer_decay, weight_decay)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found.get(id(p)) for name, p in model.named_parameters()}


def test_learning_rate_falls_with_depth(model):
    found = rates(model, layer_decay=0.5)
    blocks = "radio_model.model.blocks"
    assert [found[f"{blocks}.{index}.attn.qkv.weight"][0] for index in range(4)] == [0.125, 0.25, 0.5, 1.0]
    assert found["radio_model.model.patch_generator.embedder.weight"] == (0.0625, 0.1)
    assert found["radio_model.model.patch_generator.pos_embed"] == (0.0625, 0.0)
    assert found["radio_model.model.patch_generator.cls_token.token"] == (0.0625, 0.0)
    assert found[f"{blocks}.3.attn.qkv.bias"] == (1.0, 0.0)
    assert found["classifier.1.weight"] == (7.0, 0.1)
    assert None not in found.values()


def test_learning_rates_of_a_radio1d_know_its_decoder_and_mergings():
    model = RadioForImageClassification(RadioConfig(**FIELDS))  # three blocks, a merging before the second
    found = {name.removeprefix("radio_model.model."): rate for name, rate in rates(model, layer_decay=0.5).items()}
    assert [found[f"blocks.{index}.attn.qkv.weight"][0] for index in range(3)] == [0.25, 0.5, 1.0]
    assert found["downscale_blocks.0.reduction.weight"] == found["prefix_proj_blocks.0.weight"] == (0.5, 0.1)
    assert found["patch_generator.embedder.weight"] == (0.125, 0.1)
    decoder = {rate for name, (rate, _) in found.items() if name.startswith("decoder.")}
    assert decoder == {1.0}  # the head reads it


def test_learning_rate_of_an_e_radio_falls_with_its_levels():
    model = RadioForImageClassification(build_eradio().config)
    falling = {}
    for name, (rate, _) in rates(model, layer_decay=0.5).items():
        part = name.removeprefix("radio_model.model.").split(".")
        falling.setdefault(".".join(part[: 2 if part[0] == "levels" else 1]), set()).add(rate)
    levels = {f"levels.{index}": {0.5 ** (3 - index)} for index in range(4)}
    assert falling == {"patch_embed": {0.0625}, **levels, "high_res_neck": {1.0}, "classifier": {7.0}}


def test_frozen_parameters_are_in_no_group(model):
    model.radio_model.requires_grad_(False)
    found = rates(model, layer_decay=0.5)
    assert {name for name, rate in found.items() if rate} == {name for name in found if name.startswith("classifier")}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_take_the_rate_of_their_block(model):
    found = rates(add_adapter(model, tuning_settings(tune="lora")), layer_decay=0.5)
    trained = {name: rate for name, rate in found.items() if rate}
    assert all("lora_" in name or "classifier" in name for name in trained)
    name = "base_model.model.radio_model.model.blocks.2.mlp.fc1.lora_B.default.weight"
    assert trained[name] == (0.5, 0.1)


def test_a_frozen_backbone_stays_in_evaluation_mode(model):
    assert frozen_parts(model) == [model.radio_model.model.patch_generator]
    model.radio_model.requires_grad_(False)
    assert frozen_parts(model) == [model.radio_model]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_with_adapters_only_the_positions_stay_in_evaluation_mode(model):
    network = model.radio_model
    (positions,) = frozen_parts(add_adapter(model, tuning_settings(tune="lora")))
    assert positions is network.model.patch_generator
    pixels = torch.rand(1, 3, 64, 64)
    model.train()
    positions.eval()
    assert torch.equal(model(pixels).logits, model(pixels).logits)  # no random positions
