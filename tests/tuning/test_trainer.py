"""Checkpoints to go on from, learning rates by task, width and depth, and parts in evaluation mode."""

import json
import logging
import os

import pytest
import torch
from tiny_eradio import build_eradio
from tiny_radio1d import FIELDS
from tiny_tuning import run_settings, tuning_settings

from modeling_radio import RadioConfig, RadioForImageClassification
from modeling_radio.core.files import WriteError
from modeling_radio.core.manifests import MANIFEST, CheckpointError, write_manifest
from modeling_radio.tuning.adapters import add_adapter
from modeling_radio.tuning.run import FinetuningRun
from modeling_radio.tuning.trainer import (
    frozen_parts,
    last_checkpoint,
    learning_rates,
    parameter_groups,
    scaled_rate,
    sealed_checkpoints,
)


@pytest.fixture
def output(tmp_path):
    """Two sealed checkpoints, the newer of which is first in the alphabet, and folders that are no checkpoints."""
    for step in (8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "shards").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights" * 100)
        (folder / "shards" / "0.pt").write_bytes(b"moments" * 100)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        write_manifest(folder)
    for name in OTHERS:
        (tmp_path / name).mkdir()
    return tmp_path


OTHERS = ("checkpoint-12-copy", "checkpoint-best")


def names(output):
    """Names of the checkpoints that are left; other folders always are."""
    found = {path.name for path in output.iterdir()}
    assert found.issuperset(OTHERS)
    return sorted(found.difference(OTHERS))


@pytest.mark.parametrize("name", ["model.safetensors", "shards/0.pt", "trainer_state.json", MANIFEST])
@pytest.mark.parametrize("change", ["cut", "emptied", "other", "removed"])
def test_a_damaged_newest_checkpoint_is_skipped(name, change, output, caplog):
    assert last_checkpoint(output / "missing") is None
    assert last_checkpoint(output) == str(output / "checkpoint-12")
    path = output / "checkpoint-12" / name
    content = path.read_bytes()
    changed = {"cut": content[:-1], "emptied": b"", "other": b"?" + content[1:], "removed": None}[change]
    path.unlink() if changed is None else path.write_bytes(changed)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(output) == str(output / "checkpoint-8")
    if (name, change) != (MANIFEST, "removed"):  # as after a kill, which is no damage
        assert f"{path}'" in caplog.text
        assert "checkpoint-12 is removed" in caplog.text
    assert names(output) == ["checkpoint-8"]


def test_half_written_and_half_removed_checkpoints_are_removed(output, caplog):
    (output / "checkpoint-16").mkdir()
    (output / "checkpoint-16" / "trainer_state.json").write_text("{}")
    os.unlink(output / "checkpoint-8" / MANIFEST)
    assert sealed_checkpoints(output) == [output / "checkpoint-12"]
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(output) == str(output / "checkpoint-12")
    assert names(output) == ["checkpoint-12"]
    assert not caplog.records


def test_without_an_intact_checkpoint_nothing_is_removed(output):
    for step in (8, 12):
        (output / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint-8/model\.safetensors.*--output"):
        last_checkpoint(output)
    assert names(output) == ["checkpoint-12", "checkpoint-8"]


@pytest.mark.parametrize(
    ("task", "tune", "width", "fields", "expected"),
    [
        ("image-classification", "lora", 768, {}, (5e-4, 1e-3)),
        ("image-classification", "full", 768, {}, (5e-5, 1e-3)),
        ("image-classification", "full", 192, {}, (2e-4, 4e-3)),
        ("semantic-segmentation", "dora", 192, {}, (2e-3, 4e-3)),
        ("semantic-segmentation", "dora", 192, {"segmentation_head": "dpt"}, (2e-3, 1e-3)),  # a width of its own
        ("depth-estimation", "rslora", 1536, {}, (2.5e-4, 1e-3)),
        ("object-detection", "lora", 192, {}, (4e-4, 1e-4)),
        ("instance-segmentation", "full", 192, {}, (4e-5, 1e-4)),
        ("zero-shot-image-classification", "lora", 192, {}, (2e-3, 1e-4)),
    ],
)
def test_learning_rates_of_backbones_adapters_and_linear_heads_follow_the_width(task, tune, width, fields, expected):
    config = RadioConfig.from_preset("radio-test", hidden_size=width, **fields)
    assert learning_rates(tuning_settings(task, tune=tune), config) == pytest.approx(expected)
    given = tuning_settings(task, tune=tune, learning_rate=0.25, head_learning_rate=0.5)
    assert learning_rates(given, config) == (0.25, 0.5)


@pytest.mark.parametrize(("task", "expected"), [("image-classification", 1e-3), ("semantic-segmentation", 2e-4)])
def test_a_solved_head_learns_as_slowly_as_its_backbone(task, expected):
    config = RadioConfig.from_preset("radio-test", hidden_size=192)
    settings = tuning_settings(task, tune="full")
    assert learning_rates(settings, config, has_batch_norms=True, is_solved=True) == pytest.approx((expected,) * 2)


def test_a_run_uses_and_prints_its_learning_rates(base, class_folders, tmp_path, capsys):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora"))
    expected = scaled_rate(5e-4, run.config.hidden_size)
    assert f"adapters {expected:.2g}, head {expected:.2g}." in capsys.readouterr().out
    assert {group["lr"] for group in run.trainer.create_optimizer().param_groups} == {expected}
    assert run.arguments.learning_rate == expected


@pytest.fixture
def model():
    return RadioForImageClassification(RadioConfig.from_preset("radio-test", num_labels=3))


def rates(model):
    """Return learning rate and weight decay by parameter, None for parameters in no group."""
    groups = parameter_groups(model, (1.0, 7.0), 0.5, 0.1)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name.removeprefix("radio_model.model."): found.get(id(p)) for name, p in model.named_parameters()}


def test_learning_rates_fall_with_depth(model):
    found = rates(model)
    assert [found[f"blocks.{index}.attn.qkv.weight"][0] for index in range(4)] == [0.125, 0.25, 0.5, 1.0]
    assert found["patch_generator.embedder.weight"] == (0.0625, 0.1)
    assert found["patch_generator.pos_embed"] == found["patch_generator.cls_token.token"] == (0.0625, 0.0)
    assert found["blocks.3.attn.qkv.bias"] == (1.0, 0.0)
    assert found["classifier.1.weight"] == (7.0, 0.1)
    assert None not in found.values()


def test_learning_rates_of_a_radio1d_include_its_decoder_and_mergings():
    found = rates(RadioForImageClassification(RadioConfig(**FIELDS)))  # three blocks, a merging before the second
    assert [found[f"blocks.{index}.attn.qkv.weight"][0] for index in range(3)] == [0.25, 0.5, 1.0]
    assert found["downscale_blocks.0.reduction.weight"] == found["prefix_proj_blocks.0.weight"] == (0.5, 0.1)
    assert found["patch_generator.embedder.weight"] == (0.125, 0.1)
    assert {rate for name, (rate, _) in found.items() if name.startswith("decoder.")} == {1.0}  # the head reads it


def test_learning_rates_of_an_e_radio_fall_with_its_levels():
    falling = {}
    for name, (rate, _) in rates(RadioForImageClassification(build_eradio().config)).items():
        part = name.split(".")
        falling.setdefault(".".join(part[: 2 if part[0] == "levels" else 1]), set()).add(rate)
    levels = {f"levels.{index}": {0.5 ** (3 - index)} for index in range(4)}
    assert falling == {"patch_embed": {0.0625}, **levels, "high_res_neck": {1.0}, "classifier": {7.0}}


def test_a_frozen_backbone_has_no_learning_rate_and_stays_in_evaluation_mode(model):
    assert frozen_parts(model) == [model.radio_model.model.patch_generator]
    model.radio_model.requires_grad_(False)
    assert frozen_parts(model) == [model.radio_model]
    found = rates(model)
    assert {name for name, rate in found.items() if rate} == {name for name in found if name.startswith("classifier")}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_have_the_rate_of_their_block_and_positions_in_evaluation_mode(model):
    network = model.radio_model
    adapted = add_adapter(model, tuning_settings(tune="lora"))
    trained = {name: rate for name, rate in rates(adapted).items() if rate}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert trained["base_model.model.radio_model.model.blocks.2.mlp.fc1.lora_B.default.weight"] == (0.5, 0.1)
    (positions,) = frozen_parts(adapted)
    assert positions is network.model.patch_generator
    pixels = torch.rand(1, 3, 64, 64)
    model.train()
    positions.eval()
    assert torch.equal(model(pixels).logits, model(pixels).logits)  # no random positions


def test_of_equal_metrics_the_lowest_loss_is_best(base, class_folders, tmp_path, monkeypatch, capsys):
    settings = run_settings(base, class_folders, tmp_path / "run", steps=4, evaluate_every=1, patience=3)
    run = FinetuningRun(settings)
    monkeypatch.setattr(run.trainer, "metrics", ConstantMetrics())
    run.trainer.compute_metrics = run.trainer.metrics
    losses = iter([3.0, 2.0, 2.5, 1.0])
    measure = run.trainer.evaluation_loop

    def with_given_loss(*args, **options):
        output = measure(*args, **options)
        output.metrics["eval_loss"] = next(losses, output.metrics["eval_loss"])
        return output

    monkeypatch.setattr(run.trainer, "evaluation_loop", with_given_loss)
    run.trainer.train()
    assert run.trainer.state.best_global_step == 4
    assert run.trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    lines = capsys.readouterr()
    table = [line.split() for line in (lines.out + lines.err).splitlines() if line.split()[:1] in (["1"], ["3"], ["4"])]
    assert [row[-1] == "best" for row in table] == [True, False, True]


def test_a_checkpoint_that_finds_no_space_is_named_and_removed(base, class_folders, tmp_path, monkeypatch, full_disk):
    trainer = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", steps=1)).trainer
    save = trainer.save_model

    def save_on_full_disk(*args, **options):
        with full_disk():
            save(*args, **options)

    monkeypatch.setattr(trainer, "save_model", save_on_full_disk)
    with pytest.raises(WriteError, match=r"^[^\n]*checkpoint-1': [^\n]*$"):
        trainer.train()
    assert not (tmp_path / "run" / "checkpoint-1").exists()


class ConstantMetrics:
    """Metrics that never change."""

    def __init__(self):
        self.latest = {"accuracy": 0.5}

    def __call__(self, batch, compute_result):
        return dict(self.latest) if compute_result else {}
