"""Whole runs on tiny folders: their files, their resumption, and refused settings."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Value
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_eradio import build_eradio
from tiny_networks import build_wrapped
from tiny_tuning import TINY_DETECTOR, TINY_DPT, run_settings, save_shards, save_splits, stop_after
from transformers import TrainerCallback
from tuning_fixtures import HEIGHT, WIDTH, save_palette_mask

from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
)
from modeling_radio.core.errors import UserError
from modeling_radio.core.files import sole_run
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.core.timing import Clock
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.training.student.parameters import CLIPS
from modeling_radio.tuning import run as run_module
from modeling_radio.tuning.adapters import open_adapter
from modeling_radio.tuning.error_analysis import predict_examples
from modeling_radio.tuning.merge import MergeSettings, merge
from modeling_radio.tuning.record import record_run
from modeling_radio.tuning.run import FINAL, MERGED, RESULTS, SETTINGS, FinetuningRun
from modeling_radio.tuning.trainer import TrainingTime


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def equal_weights(one, two):
    """Return whether each weight of a file is equal in another, by its name."""
    weights = load_file(two)
    return {name: torch.equal(weights[name], weight) for name, weight in load_file(one).items()}


def figures(output):
    """Return the names of the figures of errors."""
    return {path.name for path in (output / "pictures").glob("*.png") if not path.name.startswith("step-")}


@pytest.mark.parametrize(
    ("task", "fixture", "model_class", "metrics", "config"),
    [
        ("semantic-segmentation", "voc_folder", RadioForSemanticSegmentation, {"mean_iou"}, {}),
        ("depth-estimation", "depth_folder", RadioForDepthEstimation, {"abs_rel"}, TINY_DPT),
        ("object-detection", "coco_folder", RadioForObjectDetection, {"map"}, TINY_DETECTOR),
        (
            "instance-segmentation",
            "outlines_folder",
            RadioForInstanceSegmentation,
            {"map", "mask_map", "mask_map_50"},
            {**TINY_DETECTOR, "detection_window_size": 2},
        ),
    ],
)
def test_each_task_trains_and_its_adapter_merges(
    task, fixture, model_class, metrics, config, base, tmp_path, request, monkeypatch
):
    # transformers' loss of masks fails for a batch of one image and 6 queries: it compares at 6 * 4 / 16 points.
    monkeypatch.setattr("modeling_radio.tuning.trainer.predict_examples", predict_examples)
    data, output, has_boxes = request.getfixturevalue(fixture), tmp_path / "run", "map" in metrics
    found = FinetuningRun(run_settings(base, data, output, task, tune="lora", merge=True, config=config)).run()
    assert metrics <= found.keys()
    assert json.loads((output / RESULTS).read_text())["metrics"] == found
    if task == "semantic-segmentation":  # the others' are empty files
        with Image.open(output / "pictures" / "step-2.png") as picture:
            assert picture.width > 100
    assert {path.parent.relative_to(output) for path in output.rglob("*.jpg")} == {Path("pictures", "examples")}
    of_task = "precision_recall.png" if has_boxes else "confusion.png"
    assert figures(output) == {"worst.png", of_task} - ({of_task} if task == "depth-estimation" else set())
    assert ("thresholds" in json.loads((output / RESULTS).read_text())) == has_boxes
    merged = model_class.from_pretrained(output / MERGED).eval()
    assert len(merged.config.score_thresholds or ()) == (2 if has_boxes else 0)
    assert all(getattr(merged.config, name) == value for name, value in config.items())
    adapted = model_class.from_pretrained(base, config=RadioConfig.from_pretrained(output / FINAL))
    adapted = open_adapter(adapted, output / FINAL).eval()
    processor = RadioImageProcessor.from_pretrained(output / MERGED)
    pixels = processor(Image.new("RGB", (70, 50), (90, 160, 30)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 48)
    with torch.no_grad():
        outputs = [model(pixels, return_dict=False) for model in (merged, adapted)]
    for actual, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    FinetuningRun(
        run_settings(base, data, output, task, tune="lora", config=config, device="cpu")
    )  # not merged: the same run
    again = tmp_path / "again"
    with pytest.raises(ValueError, match="`base`"):  # a path that an adapter names is not followed
        merge(MergeSettings(adapter=output, output=again))
    merge(MergeSettings(adapter=output, output=again, base=str(base)))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in (output / MERGED).iterdir()
    }


@pytest.mark.parametrize("tune", ["head", "full"])
def test_an_e_radio_is_tuned(tune, class_folders, tmp_path):
    build_eradio().save_pretrained(tmp_path / "base")
    settings = run_settings(tmp_path / "base", class_folders, tmp_path / "run", tune=tune, size=(32, 48))
    with pytest.raises(ValueError, match="`size`"):  # no multiple of 32
        FinetuningRun(settings)
    assert "accuracy" in FinetuningRun(settings.replace(size=(32, 64), layer_decay=0.5)).run()
    last = FINAL if tune == "head" else "checkpoint-2"  # the fitted head may stay the best state
    before, after = (tmp_path / folder / "model.safetensors" for folder in ("base", f"run/{last}"))
    sizes = {name: weight.numel() for name, weight in load_file(before).items()}
    is_equal = {name: equal for name, equal in equal_weights(before, after).items() if sizes[name] > 1}
    assert all(equal for name, equal in is_equal.items() if tune == "head" or "running_" in name)
    assert all(is_equal.values()) == (tune == "head")
    assert RadioForImageClassification.from_pretrained(tmp_path / "run" / FINAL).config.eradio is not None


@pytest.mark.parametrize("tune", ["head", "full"])
def test_a_network_of_a_library_is_tuned(tune, class_folders, tmp_path):
    build_wrapped("ResNet", adaptors=[]).save_pretrained(tmp_path / "base")
    settings = run_settings(tmp_path / "base", class_folders, tmp_path / "run", tune=tune, size=(32, 64))
    assert "accuracy" in FinetuningRun(settings.replace(layer_decay=0.5)).run()
    last = FINAL if tune == "head" else "checkpoint-2"
    before, after = (tmp_path / folder / "model.safetensors" for folder in ("base", f"run/{last}"))
    assert set(equal_weights(before, after).values()) == ({True} if tune == "head" else {True, False})
    assert RadioForImageClassification.from_pretrained(tmp_path / "run" / FINAL).config.wrapped is not None


def test_head_leaves_the_backbone_bit_equal(base, class_folders, tmp_path, capsys):
    FinetuningRun(run_settings(base, class_folders, tmp_path / "run")).run()
    final = tmp_path / "run" / FINAL
    assert all(equal_weights(base / "model.safetensors", final / "model.safetensors").values())
    assert figures(tmp_path / "run") == {"confusion.png", "precision_recall.png", "worst.png"}
    model = RadioForImageClassification.from_pretrained(final)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    head = sum(weights.numel() for weights in model.classifier.parameters())
    assert f"Solving the linear head, {head:,} of " in capsys.readouterr().out


@pytest.mark.parametrize("frames", [None, 2])
def test_full_moves_everything(frames, base, class_folders, tmp_path):
    if frames is not None:  # of clips, whose projection no image reaches
        RadioModel.from_pretrained(base, video_temporal_patch_size=frames).save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    options = {"tune": "full", "layer_decay": 0.7, "gradient_checkpointing": True, "dtype": "bfloat16", "steps": 3}
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    run.run()
    is_equal = equal_weights(base / "model.safetensors", tmp_path / "run" / FINAL / "model.safetensors")
    assert not any(is_equal[f"radio_model.model.blocks.{index}.mlp.fc1.weight"] for index in range(4))
    frozen = [name for name, parameter in run.model.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name in is_equal if name == CLIPS]
    assert len(frozen) == (frames is not None)
    assert all(is_equal[name] for name in frozen)


# The stop lies within the first epoch (of four or twelve images), the end within the second.
TABLE = {"steps": 6, "evaluate_every": 3, "validation_share": 0.2, "batch_size": 1, "lora_dropout": 0.2}
STREAM = {"streaming": True, "classes": ("even", "odd"), "steps": 8, "evaluate_every": 4, "num_workers": 2}


@pytest.mark.parametrize(
    "options",
    [{**TABLE, "tune": "lora"}, {**TABLE, "tune": "full"}, {**STREAM, "tune": "lora"}],
    ids=["lora", "full", "stream"],
)
def test_a_resumed_run_equals_an_undisturbed_one(options, base, class_folders, tmp_path):
    data = save_shards(tmp_path / "shards") if "streaming" in options else class_folders
    options = {**options, "config": {"drop_path_rate": 0.2}}  # randomness in the model, too
    states = {}
    for name, stops in {"stopped": [options["evaluate_every"], options["steps"]], "whole": [options["steps"]]}.items():
        for stop in stops:
            run = FinetuningRun(run_settings(base, data, tmp_path / name, **options))
            stop_after(run, stop)
        assert run.trainer.state.global_step == options["steps"]
        states[name] = {n: p.detach().clone() for n, p in run.trainer.model.named_parameters() if p.requires_grad}
    for name, weights in states["whole"].items():
        assert torch.equal(states["stopped"][name], weights), name


STILL = {"learning_rate": 0.0, "head_learning_rate": 0.0}
PATIENT = {"tune": "full", "steps": 20, "evaluate_every": 1, "patience": 2, "validation_share": 0.5, **STILL}


@pytest.mark.parametrize(
    ("options", "steps"), [({"tune": "full", "batch_size": 1}, 2), (PATIENT, 2)], ids=["within epoch", "patience"]
)
def test_a_finished_run_is_not_trained_again(options, steps, base, class_folders, tmp_path, capsys):
    settings = run_settings(base, class_folders, tmp_path / "run", **options)
    metrics = FinetuningRun(settings).run()
    shutil.copy(tmp_path / "run" / FINAL / "model.safetensors", tmp_path)
    assert "has ended before" not in capsys.readouterr().out
    again = FinetuningRun(settings)
    assert again.run() == metrics
    assert again.trainer.state.global_step == steps
    assert "has ended before" in capsys.readouterr().out
    assert all(equal_weights(tmp_path / "model.safetensors", tmp_path / "run" / FINAL / "model.safetensors").values())


def test_a_resumed_run_is_no_more_patient(base, class_folders, tmp_path):
    settings = run_settings(base, class_folders, tmp_path / "run", **{**PATIENT, "patience": 3})
    stop_after(FinetuningRun(settings), 2)
    resumed = FinetuningRun(settings)
    resumed.run()
    assert resumed.trainer.state.global_step == 3  # as without the stop: three evaluations without a better metric


def test_seconds_of_all_sessions_add_up(base, class_folders, tmp_path):
    settings = run_settings(base, class_folders, tmp_path / "run", tune="lora", steps=3, evaluate_every=1)
    first = FinetuningRun(settings)
    first.trainer.remove_callback(TrainingTime)
    first.trainer.add_callback(TrainingTime(1000.0))  # as if it went on itself
    stop_after(first, 2)
    second = FinetuningRun(settings)
    assert second.trainer.seconds_before == 0
    second.run()
    assert 1000 < second.trainer.seconds_before < json.loads((tmp_path / "run" / RESULTS).read_text())["seconds"]


def test_folders_of_other_runs_are_left_alone(base, class_folders, tmp_path):
    settings = run_settings(base, class_folders, tmp_path / "run")
    run = FinetuningRun(settings)
    with sole_run(tmp_path / "run"), pytest.raises(UserError, match="run"):
        run.run()
    assert not (tmp_path / "run").exists()  # nothing was written
    metrics = FinetuningRun(settings).run()
    with pytest.raises(ValueError, match=r"`output` .* another seed, steps"):
        FinetuningRun(settings.replace(steps=3, seed=1))
    path = tmp_path / "run" / SETTINGS
    stored = {name: value for name, value in json.loads(path.read_text()).items() if name != "patience"}
    path.write_text(json.dumps(stored))  # as of a run from before that setting existed
    with pytest.raises(ValueError, match=r"`output` .* another patience"):
        FinetuningRun(settings.replace(patience=3))
    assert FinetuningRun(settings).run() == metrics
    path.write_text('{"steps')
    with pytest.raises(ValueError, match=r"run/settings\.json"):
        FinetuningRun(settings)
    (tmp_path / "others" / "checkpoint-7").mkdir(parents=True)  # without a manifest it would be removed as half written
    with pytest.raises(ValueError, match=r"`output` .*checkpoint-7"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "others"))
    assert (tmp_path / "others" / "checkpoint-7").is_dir()


def test_a_run_that_failed_before_its_first_checkpoint_is_no_obstacle(base, class_folders, tmp_path, monkeypatch):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora", steps=2))
    monkeypatch.setattr(run.trainer, "train", Mock(side_effect=ValueError("a mask is wrong")))
    with pytest.raises(ValueError, match="a mask is wrong"):
        run.run()
    assert FinetuningRun(run_settings(base, class_folders, tmp_path / "run", steps=3)).run()


class ChangeWeights(TrainerCallback):
    """Inverts the last layer at the end of a step, before it is measured and saved, or makes all NaN after it."""

    def __init__(self, step, *, to_nan=False):
        self.step, self.to_nan = step, to_nan

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step and not self.to_nan:
            for parameter in list(model.parameters())[-2:]:
                parameter.data *= -100

    def on_save(self, args, state, control, model, **kwargs):
        if state.global_step == self.step and self.to_nan:
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)


TARGETS = {
    "accuracy": (ClassLabel(names=["common", "rare"]), [0, 0, 0, 0, 0, 1]),
    "mean_absolute_error": (Value("float32"), [1.0] * 6),  # the less the better
}


@pytest.mark.parametrize(
    ("metric", "tune", "is_stopped"), [("accuracy", "full", False), ("mean_absolute_error", "lora", True)]
)
def test_the_best_state_is_kept_when_later_ones_are_worse(metric, tune, is_stopped, base, tmp_path):
    feature, labels = TARGETS[metric]
    data, output = save_splits(tmp_path / "data", feature, labels, labels[:2]), tmp_path / "run"
    options = {"tune": tune, "steps": 4, "evaluate_every": 1, "learning_rate": 1e-5, "head_learning_rate": 1e-4}
    run = FinetuningRun(run_settings(base, data, output, **options))
    run.trainer.add_callback(ChangeWeights(3))
    if is_stopped:
        stop_after(run, 3)
        output = output.rename(tmp_path / "moved")  # its best checkpoint too, whose old path Trainer's state names
        run = FinetuningRun(run_settings(base, data, output, **options))
    found = run.run()[metric]
    measured = [entry[f"eval_{metric}"] for entry in run.trainer.state.log_history if f"eval_{metric}" in entry]
    best = max(measured[:3]) if metric == "accuracy" else min(measured[:3])
    assert abs(measured[4] - best) > 0.5
    assert found == pytest.approx(best)
    name = "model.safetensors" if tune == "full" else "adapter_model.safetensors"
    kept = run.trainer.state.best_global_step
    assert kept < 3
    assert all(equal_weights(output / f"checkpoint-{kept}" / name, output / FINAL / name).values())
    assert not all(equal_weights(output / "checkpoint-4" / name, output / FINAL / name).values())


def test_a_damaged_best_checkpoint_leaves_the_best_of_the_others(base, tmp_path, caplog):
    data, output = save_splits(tmp_path / "data", Value("float32"), [1.0] * 6, [1.0] * 2), tmp_path / "run"
    settings = run_settings(base, data, output, tune="full", steps=4, evaluate_every=1, head_learning_rate=0.05)
    run = FinetuningRun(settings)
    run.trainer.add_callback(ChangeWeights(3))
    stop_after(run, 3)
    best = Path(run.trainer.state.best_model_checkpoint)
    assert best.name in ("checkpoint-0", "checkpoint-1", "checkpoint-2")
    os.truncate(best / "model.safetensors", 100)
    run = FinetuningRun(settings)
    run.trainer.add_callback(ChangeWeights(4))
    run.run()
    assert f"{best.name} is removed" in caplog.text
    measured = [entry["eval_mean_absolute_error"] for entry in run.trainer.state.log_history if "eval_loss" in entry]
    assert measured[3] < measured[4]
    paths = [output / folder / "model.safetensors" for folder in ("checkpoint-3", FINAL)]
    assert all(equal_weights(*paths).values())


def test_a_diverged_run_keeps_the_checkpoints_from_before(base, class_folders, tmp_path):
    output = tmp_path / "run"
    run = FinetuningRun(run_settings(base, class_folders, output, tune="full", steps=4, evaluate_every=2))
    run.trainer.add_callback(ChangeWeights(2, to_nan=True))
    with pytest.raises(TrainingDivergedError, match=r"step 3 .*nan.*`learning_rate`"):
        run.run()
    assert not (output / FINAL).exists()
    assert not (output / RESULTS).exists()
    weights = load_file(output / "checkpoint-2" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("task", "data", "config"),
    [("image-classification", "class_folders", {}), ("object-detection", "coco_folder", TINY_DETECTOR)],
)
def test_a_learning_rate_that_diverges(task, data, config, base, tmp_path, request, monkeypatch):
    monkeypatch.setattr("modeling_radio.tuning.run.WARMUP_SHARE", 0.0)
    options = {"learning_rate": 1e30, "head_learning_rate": 1e30, "evaluate_every": 1}
    output = tmp_path / "run"
    settings = run_settings(base, request.getfixturevalue(data), output, task, tune="full", config=config, **options)
    with pytest.raises(TrainingDivergedError, match="after step 1"):
        FinetuningRun(settings).run()
    kept = {"checkpoint-0"} if task == "image-classification" else set()  # that of the fitted head
    assert {path.name for path in output.glob("checkpoint-*")} == kept
    assert not (output / FINAL).exists()


def test_weights_that_are_not_finite_are_not_exported(base, class_folders, tmp_path):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run"))
    weights = {**run.model.state_dict(), "classifier.1.bias": torch.tensor([0.0, torch.inf])}
    with pytest.raises(TrainingDivergedError, match=r"1 of 4 .*classifier\.1\.bias"):
        run.save(weights, record_run(run.task, {}, Clock()))
    assert not (tmp_path / "run" / FINAL).exists()


def test_a_validation_set_that_measures_nothing_is_refused(base, voc_folder, tmp_path):
    for split in ("train", "valid"):
        shutil.copytree(voc_folder, tmp_path / "split" / split)
    for path in (tmp_path / "split" / "valid" / "masks").iterdir():
        save_palette_mask(path, np.full((HEIGHT, WIDTH), 255))
    run = FinetuningRun(run_settings(base, tmp_path / "split", tmp_path / "run", "semantic-segmentation"))
    with pytest.raises(ValueError, match="`mean_iou`"):
        run.run()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": (40, 48)}, "`size` .*32 x 48"),
        ({"tune": "lora", "lora_targets": ("qkv", "fc3")}, "`lora_targets` .*'fc2'.*'fc3'"),
        ({"config": {"drop_path": 0.1}}, "`config` .*'drop_path_rate'"),
        ({"config": {"class_weights": [1.0, 2.0]}}, "`config` .*'class_weights'"),
        ({"config": {"hidden_size": 48, "intermediate_size": 192}}, r"`checkpoint` .*radio_model\."),
        ({"window_size": 1, "config": {"vitdet_window_size": 2}}, "`config` .*'vitdet_window_size'"),
        ({"class_weights": (1.0, 2.0, 3.0)}, "`class_weights` .*cat, dog"),
    ],
)
def test_settings_that_do_not_fit_are_refused(base, class_folders, tmp_path, options, name):
    with pytest.raises(ValueError, match=name):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP version 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "`quantize`"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "`dynamo_backend`"),
    ],
)
def test_launchers_that_are_refused(base, class_folders, tmp_path, monkeypatch, variables, name):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=name):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora", quantize=4))


def test_class_weights_of_an_earlier_tuning_are_dropped(base, class_folders, tmp_path):
    FinetuningRun(run_settings(base, class_folders, tmp_path / "first", class_weights=(1.0, 2.0))).run()
    assert RadioConfig.from_pretrained(tmp_path / "first" / FINAL).class_weights == [1.0, 2.0]
    second = FinetuningRun(run_settings(tmp_path / "first" / FINAL, class_folders, tmp_path / "second"))
    assert second.model.config.class_weights is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_adapters_train_on_quantized_blocks(bits, class_folders, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wide = RadioConfig.from_preset("radio-test", hidden_size=64, preferred_resolution=[32, 48])  # one block of NF4
    RadioModel(wide).save_pretrained(tmp_path / "base")
    output = tmp_path / "run"
    options = {"tune": "lora", "quantize": bits, "merge": True}
    run = FinetuningRun(run_settings(tmp_path / "base", class_folders, output, **options))
    linear_class = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}[bits]
    quantized = [name for name, module in run.model.named_modules() if isinstance(module, linear_class)]
    assert len(quantized) == 4 * wide.num_hidden_layers
    assert all(".blocks." in name for name in quantized)
    run.run()
    adapter, merged = load_file(output / FINAL / "adapter_model.safetensors"), output / MERGED / "model.safetensors"
    assert {weights.dtype for weights in adapter.values()} == {torch.float32}
    last = load_file(output / "checkpoint-2" / "adapter_model.safetensors")  # the fitted head may stay the best state
    assert any(weights.any() for name, weights in last.items() if "lora_B" in name)  # it starts at zero
    assert {weights.dtype for weights in load_file(merged).values()} <= {torch.float32, torch.int64}
    assert "quantization_config" not in json.loads((output / FINAL / "config.json").read_text())
    if Version(transformers.__version__) >= Version("5.18"):  # before, it reads no head
        pixels = torch.rand(1, 3, 32, 48)
        final, plain = (RadioForImageClassification.from_pretrained(output / name) for name in (FINAL, MERGED))
        with torch.no_grad():
            torch.testing.assert_close(final.eval()(pixels).logits, plain.eval()(pixels).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [0, 3000])
def test_damaged_weights_of_the_checkpoint_are_named(size, base, class_folders, tmp_path):
    shutil.copytree(base, tmp_path / "damaged")
    os.truncate(tmp_path / "damaged" / "model.safetensors", size)
    with pytest.raises(ValueError, match="damaged"):
        FinetuningRun(run_settings(tmp_path / "damaged", class_folders, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "rule"), [(lambda weight: weight * torch.nan, "finite"), (torch.Tensor.int, "floating-point")]
)
def test_unfit_weights_of_the_checkpoint_are_named(change, rule, base, class_folders, tmp_path):
    folder = shutil.copytree(base, tmp_path / "unfit")
    weights = load_file(folder / "model.safetensors")
    key = "radio_model.model.blocks.0.attn.qkv.weight"
    save_file({**weights, key: change(weights[key])}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{rule}.*{key}"):
        FinetuningRun(run_settings(folder, class_folders, tmp_path / "run"))


def test_one_of_several_gpus_is_used(base, class_folders, tmp_path, monkeypatch, capsys):
    made = run_module.training_arguments

    def on_four_gpus(settings):
        arguments = made(settings)
        arguments._n_gpu = 4
        return arguments

    monkeypatch.setattr(run_module, "training_arguments", on_four_gpus)
    assert FinetuningRun(run_settings(base, class_folders, tmp_path / "run")).arguments.n_gpu == 1
    assert "One of 4 GPUs" in capsys.readouterr().out
