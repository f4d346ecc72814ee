"""Learning rates by task, width and depth, and which part of the model stays in evaluation mode."""

import pytest
import torch
from tiny_eradio import build_eradio
from tiny_radio1d import FIELDS
from tiny_tuning import run_settings, tuning_settings

from modeling_radio import RadioConfig, RadioForImageClassification
from training.finetuning.adapters import add_adapter
from training.finetuning.run import FinetuningRun
from training.finetuning.trainer import frozen_parts, learning_rates, parameter_groups, scaled_rate


def preset(width=192, **fields):
    return RadioConfig.from_preset("radio-test", hidden_size=width, **fields)


@pytest.mark.parametrize(
    ("task", "tune", "width", "rate"),
    [
        ("image-classification", "lora", 768, 5e-4),
        ("semantic-segmentation", "dora", 192, 2e-3),
        ("depth-estimation", "rslora", 1536, 2.5e-4),
        ("image-classification", "full", 768, 5e-5),
        ("image-classification", "full", 192, 2e-4),
        ("object-detection", "lora", 192, 4e-4),
        ("instance-segmentation", "full", 192, 4e-5),
    ],
)
def test_backbones_and_adapters_follow_the_width(task, tune, width, rate):
    assert learning_rates(tuning_settings(task, tune=tune), preset(width))[0] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("task", "fields", "rate"),
    [
        ("image-classification", {}, 4e-3),
        ("semantic-segmentation", {}, 4e-3),
        ("semantic-segmentation", {"segmentation_head": "dpt"}, 1e-3),  # decoders have a width of their own
        ("depth-estimation", {}, 1e-3),
        ("object-detection", {}, 1e-4),
        ("instance-segmentation", {}, 1e-4),
        ("zero-shot-image-classification", {}, 1e-4),
    ],
)
def test_linear_heads_follow_the_width(task, fields, rate):
    assert learning_rates(tuning_settings(task), preset(**fields))[1] == pytest.approx(rate)


def test_what_is_given_is_taken():
    given = tuning_settings(tune="lora", learning_rate=0.25, head_learning_rate=0.5)
    assert learning_rates(given, preset()) == (0.25, 0.5)


def test_a_run_takes_and_says_them(base, class_folders, tmp_path, capsys):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora"))
    width = run.config.hidden_size
    expected = scaled_rate(5e-4, width), scaled_rate(1e-3, width)
    assert f"peaks of the learning rate: adapters {expected[0]:.2g}, head {expected[1]:.2g}." in capsys.readouterr().out
    groups = run.trainer.create_optimizer().param_groups
    assert {group["lr"] for group in groups} == set(expected)
    assert run.arguments.learning_rate == expected[0]


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
