"""Learning rates that nobody gave follow the way of tuning, the task and the backbone's width."""

import pytest
from tiny_tuning import run_settings, tuning_settings

from modeling_radio import RadioConfig
from training.finetuning.rates import learning_rates, scaled_rate
from training.finetuning.run import FinetuningRun


def config(width=192, **fields):
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
    assert learning_rates(tuning_settings(task, tune=tune), config(width))[0] == pytest.approx(rate)


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
    assert learning_rates(tuning_settings(task), config(**fields))[1] == pytest.approx(rate)


def test_what_is_given_is_taken():
    given = tuning_settings(tune="lora", learning_rate=0.25, head_learning_rate=0.5)
    assert learning_rates(given, config()) == (0.25, 0.5)


def test_a_run_takes_and_says_them(base, class_folders, tmp_path, capsys):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora"))
    width = run.config.hidden_size
    expected = scaled_rate(5e-4, width), scaled_rate(1e-3, width)
    assert f"peaks of the learning rate: adapters {expected[0]:.2g}, head {expected[1]:.2g}." in capsys.readouterr().out
    groups = run.trainer.create_optimizer().param_groups
    assert {group["lr"] for group in groups} == set(expected)
    assert run.arguments.learning_rate == expected[0]
