"""Settings that cannot be right are refused before anything is loaded."""

from pathlib import Path

import pytest

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
        ({"max_grad_norm": -1.0}, "`max_grad_norm` must be a number of at least 0, got -1.0"),
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
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_the_output_follows_the_task():
    settings = FinetuneSettings(checkpoint="c", task="depth-estimation", data="d")
    assert settings.output == Path("runs/finetune-depth-estimation")


def test_a_wrong_task_is_the_only_fault_named():
    with pytest.raises(ValueError, match="task") as error:
        FinetuneSettings(checkpoint="c", task="depth", data="d")
    assert str(error.value).startswith("`task` must be one of ")
    assert "`output`" not in str(error.value)


def test_settings_survive_json(tmp_path):
    settings(lora_targets=("qkv",), size=(64, 32)).save(tmp_path / "settings.json")
    text = (tmp_path / "settings.json").read_text()
    assert '"lora_targets": [' in text
    assert '"output": "output"' in text
