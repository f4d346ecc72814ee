"""Settings that cannot be right are refused before anything is loaded."""

import math
import re
from pathlib import Path

import pytest

from core.settings import SettingsError, kinds_of
from training.finetuning.settings import FinetuneSettings


def settings(task="image-classification", **options):
    return FinetuneSettings(checkpoint="checkpoint", task=task, data="data", output="output", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "image-clasification"}, r"`task` must be one of .* Did you mean 'image-classification'\?"),
        ({"tune": "lorra"}, r"`tune` must be one of .* Did you mean 'lora'\?"),
        ({"precision": "fp16"}, "`precision` must be one of \\['auto', 'bf16', 'fp32'\\], got 'fp16'"),
        ({"lora_rank": 0}, "`lora_rank` must be an integer of at least 1, got 0"),
        ({"tune": "lora", "lora_alpha": 0.0}, "`lora_alpha` must be a number above 0, or null, got 0.0"),
        ({"learning_rate": -1e-3}, "`learning_rate` must be a number of at least 0, or null, got -0.001"),
        ({"head_learning_rate": -1e-3}, "`head_learning_rate` must be a number of at least 0, or null, got -0.001"),
        ({"weight_decay": -0.1}, "`weight_decay` must be a number of at least 0, got -0.1"),
        ({"max_grad_norm": -1.0}, "`max_grad_norm` must be a number of at least 0, or null, got -1.0"),
        ({"num_workers": -1}, "`num_workers` must be an integer of at least 0, got -1"),
        ({"validation_share": 1.0}, r"`validation_share` must be a number in \(0, 1\), got 1.0"),
        ({"layer_decay": 1.5}, r"`layer_decay` must be a number in \(0, 1\], got 1.5"),
        ({"tune": "lora", "quantize": 3}, r"`quantize` must be one of \[4, 8\], or null, got 3"),
        ({"quantize": 4}, "`quantize` needs an adapter: choose `tune` out of lora, dora, rslora"),
        ({"merge": True, "tune": "full"}, "`merge` needs an adapter"),
        (
            {"class_weights": "balance"},
            r"must be 'balanced' or \[a number, ...\], or null, got 'balance'\. Did you mean 'balanced'",
        ),
        ({"task": "object-detection", "class_weights": "balanced"}, "`class_weights` is not for object-detection"),
        ({"class_weights": (1.0, -1.0)}, r"`class_weights` must be numbers of at least 0, one .*, got \(1.0, -1.0\)"),
        ({"class_weights": (0.0, 0.0)}, "`class_weights` must be numbers of at least 0, one of them above 0"),
        ({"class_weights": ()}, "`class_weights` must be numbers of at least 0, one of them above 0"),
        ({"size": (0, 16)}, r"`size` must be sides of at least 1 pixel, got \(0, 16\)"),
        ({"window_size": 0}, "`window_size` must be at least 1 .* got 0"),
        ({"window_size": "large"}, r"`window_size` must be at least 1 .*, 'auto', 'global' or None, got 'large'"),
        ({"seed": -1}, r"`seed` must be an integer in \[0, 4294967296\), got -1"),
        ({"lora_targets": ()}, r"`lora_targets` must be \[a text, ...\], or null, got \(\)"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


NUMBERS = [
    name
    for name, field in FinetuneSettings.model_fields.items()
    if float in kinds_of(field.annotation) or name == "class_weights"
]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite(name, value):
    with pytest.raises(SettingsError) as error:
        settings(**{name: (value,) if name == "class_weights" else value})
    assert re.match(rf"`{name}` must be .*, got .*(inf|nan)", str(error.value))
    assert str(error.value).count("`") == 2  # nothing else is blamed


@pytest.mark.parametrize("name", ["checkpoint", "data", "output"])
def test_places_are_named(name):
    places = {"checkpoint": "checkpoint", "data": "data", "output": "output"}
    with pytest.raises(SettingsError, match=rf"`{name}` must be a (text|path), got ''"):
        FinetuneSettings(task="depth-estimation", **{**places, name: ""})


def test_the_output_follows_the_task():
    settings = FinetuneSettings(checkpoint="c", task="depth-estimation", data="d")
    assert settings.output == Path("runs/finetune-depth-estimation")


@pytest.mark.parametrize("wrong", [{"task": "depth"}, {"lora_rank": 0}, {"size": "large"}, {"tune": None}])
def test_a_wrong_value_is_the_only_fault_named(wrong):
    (name,) = wrong
    with pytest.raises(SettingsError) as error:
        FinetuneSettings(**{"checkpoint": "c", "task": "depth-estimation", "data": "d", **wrong})
    assert str(error.value).startswith(f"`{name}` must be ")
    assert "`output`" not in str(error.value)


def test_settings_survive_json(tmp_path):
    settings(lora_targets=("qkv",), size=(64, 32)).save(tmp_path / "settings.json")
    text = (tmp_path / "settings.json").read_text()
    assert '"lora_targets": [' in text
    assert '"output": "output"' in text
