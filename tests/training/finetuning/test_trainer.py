"""Learning rates by depth, and which part of the model stays in evaluation mode."""

import pytest
import torch
from tiny_tuning import tuning_settings

from modeling_radio import RadioConfig, RadioForImageClassification
from training.finetuning.adapters import add_adapter
from training.finetuning.trainer import frozen_part, parameter_groups


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
    assert frozen_part(model) is model.radio_model.model.patch_generator
    model.radio_model.requires_grad_(False)
    assert frozen_part(model) is model.radio_model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_with_adapters_only_the_positions_stay_in_evaluation_mode(model):
    network = model.radio_model
    assert frozen_part(add_adapter(model, tuning_settings(tune="lora"))) is network.model.patch_generator
    pixels = torch.rand(1, 3, 64, 64)
    model.train()
    frozen_part(model).eval()
    assert torch.equal(model(pixels).logits, model(pixels).logits)  # no random positions
