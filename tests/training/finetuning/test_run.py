"""Whole runs on tiny folders: what is written, resumed and refused."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Value
from datasets import Image as ImageFeature
from matplotlib.figure import Figure
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from tiny_eradio import build_eradio
from tiny_tuning import (
    TINY_DETECTOR,
    TINY_DPT,
    run_settings,
    save_shards,
    save_splits,
    stop_after,
    tuning_settings,
)
from transformers import TrainerCallback
from tuning_fixtures import HEIGHT, WIDTH, rectangle_picture, save_palette_mask

from core.errors import UserError
from core.files import sole_run
from core.interruption import TrainingDivergedError
from modeling_radio import (
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
)
from modeling_radio.image_processing_radio import RadioImageProcessor
from training.finetuning.adapters import open_adapter
from training.finetuning.error_analysis import predict_examples
from training.finetuning.run import (
    FINAL,
    MERGED,
    RESULTS,
    SETTINGS,
    FinetuningRun,
    training_arguments,
    use_one_gpu,
)
from training.finetuning.trainer import TrainingTime, last_checkpoint
from training.student.parameters import CLIPS


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


TASKS = {
    "semantic-segmentation": ("voc_folder", RadioForSemanticSegmentation, "mean_iou", {}),
    "depth-estimation": ("depth_folder", RadioForDepthEstimation, "abs_rel", TINY_DPT),
    "object-detection": ("coco_folder", RadioForObjectDetection, "map", TINY_DETECTOR),
}


@pytest.fixture
def drawn() -> None:
    """Of tests whose pictures are drawn."""


@pytest.fixture(autouse=True)
def _no_pictures_elsewhere(request, monkeypatch):
    """Let the other tests write empty files: drawing takes a third of a tiny run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path: Path(path).touch())


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("task", TASKS)
def test_each_task_trains_and_its_adapter_merges(task, base, tmp_path, request):
    fixture, model_class, metric, config = TASKS[task]
    data = request.getfixturevalue(fixture)
    options = {"tune": "lora", "merge": True, "config": config, "task": task}
    run = FinetuningRun(run_settings(base, data, tmp_path / "run", **options))
    metrics = run.run()
    assert metric in metrics
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"] == metrics
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
    with Image.open(tmp_path / "run" / "pictures" / "step-2.png") as picture:
        assert picture.width > 100
    merged = model_class.from_pretrained(tmp_path / "run" / "merged").eval()
    adapted = open_adapter(
        model_class.from_pretrained(base, config=RadioConfig.from_pretrained(tmp_path / "run" / "final")),
        tmp_path / "run" / "final",
    ).eval()
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "merged")
    pixels = processor(Image.new("RGB", (70, 50), (90, 160, 30)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 48)
    with torch.no_grad():
        actual, expected = merged(pixels, return_dict=False)[0], adapted(pixels, return_dict=False)[0]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("drawn")
def test_instance_segmentation_trains_and_its_adapter_merges(base, outlines_folder, tmp_path, monkeypatch):
    # transformers' loss of masks fails for a batch of one image and 6 queries: it compares at 6 * 4 / 16 points.
    monkeypatch.setattr("training.finetuning.trainer.predict_examples", predict_examples)
    output = tmp_path / "run"
    options = {"tune": "lora", "merge": True, "config": TINY_DETECTOR, "window_size": 2}
    metrics = FinetuningRun(run_settings(base, outlines_folder, output, "instance-segmentation", **options)).run()
    assert {"map", "mask_map", "mask_map_50"} <= set(metrics)
    with Image.open(output / "pictures" / "step-2.png") as drawn:
        assert drawn.width > 100
    merged = RadioForInstanceSegmentation.from_pretrained(output / "merged").eval()
    assert merged.config.detection_window_size == 2
    adapted = RadioForInstanceSegmentation.from_pretrained(base, config=RadioConfig.from_pretrained(output / "final"))
    adapted = open_adapter(adapted, output / "final").eval()
    processor = RadioImageProcessor.from_pretrained(output / "merged")
    pixels = processor(rectangle_picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        actual, expected = merged(pixels), adapted(pixels)
    torch.testing.assert_close(actual.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)
    found = processor.post_process_instances(actual, [(HEIGHT, WIDTH)], threshold=0.0)[0]
    assert found["masks"].shape == (6, HEIGHT, WIDTH)


@pytest.mark.parametrize("tune", ["head", "full"])
def test_an_e_radio_is_tuned(tune, class_folders, tmp_path):
    build_eradio().save_pretrained(tmp_path / "base")
    options = {"tune": tune, "size": (32, 64), "layer_decay": 0.5}
    metrics = FinetuningRun(run_settings(tmp_path / "base", class_folders, tmp_path / "run", **options)).run()
    assert "accuracy" in metrics
    folders = (tmp_path / "base", tmp_path / "run" / FINAL)
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    is_equal = {torch.equal(after[name], weights) for name, weights in before.items() if weights.numel() > 1}
    assert is_equal == ({True} if tune == "head" else {True, False})  # running statistics among them
    assert RadioForImageClassification.from_pretrained(tmp_path / "run" / FINAL).config.eradio is not None


def test_sizes_that_an_e_radio_cannot_take(class_folders, tmp_path):
    build_eradio().save_pretrained(tmp_path / "base")
    settings = run_settings(tmp_path / "base", class_folders, tmp_path / "run", size=(32, 48))
    with pytest.raises(ValueError, match=r"`size` must have sides that are multiples of 32 .* is 32 x 64\."):
        FinetuningRun(settings)


def test_head_leaves_the_backbone_bit_equal(base, class_folders, tmp_path, capsys):
    FinetuningRun(run_settings(base, class_folders, tmp_path / "run")).run()
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(torch.equal(after[name], weights) for name, weights in before.items())
    model = RadioForImageClassification.from_pretrained(tmp_path / "run" / "final")
    assert model.config.id2label == {0: "cat", 1: "dog"}
    head = sum(weights.numel() for weights in model.classifier.parameters())
    assert f"Training {head:,} of " in capsys.readouterr().out


@pytest.mark.parametrize("frames", [None, 2])
def test_full_moves_everything(frames, base, class_folders, tmp_path):
    if frames is not None:  # of clips, whose projection no image reaches
        RadioModel.from_pretrained(base, video_temporal_patch_size=frames).save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    options = {"tune": "full", "layer_decay": 0.7, "gradient_checkpointing": True, "precision": "bf16", "steps": 3}
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    run.run()
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "run" / "final" / "model.safetensors")
    for index in range(4):
        name = f"radio_model.model.blocks.{index}.mlp.fc1.weight"
        assert not torch.equal(before[name], after[name])
    frozen = [name for name, parameter in run.model.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name in after if name == CLIPS]
    assert len(frozen) == (frames is not None)
    assert all(torch.equal(before[name], after[name]) for name in frozen)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_resumed_run_equals_an_undisturbed_one(tune, base, class_folders, tmp_path):
    # Five images: the stop lies within the first epoch, the end within the second.
    options = {"tune": tune, "steps": 6, "evaluate_every": 4, "lora_dropout": 0.2, "validation_share": 0.2}
    options |= {"batch_size": 1, "config": {"drop_path_rate": 0.2}}  # randomness in the model, too
    stopped = FinetuningRun(run_settings(base, class_folders, tmp_path / "stopped", **options))
    stop_after(stopped, 4)
    assert Path(last_checkpoint(tmp_path / "stopped")).name == "checkpoint-4"
    resumed = FinetuningRun(run_settings(base, class_folders, tmp_path / "stopped", **options))
    resumed.trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path / "stopped"))
    resumed_state = trainable_state(resumed)
    whole = FinetuningRun(run_settings(base, class_folders, tmp_path / "whole", **options))
    whole.trainer.train()
    assert resumed.trainer.state.global_step == whole.trainer.state.global_step == 6
    for name, weights in trainable_state(whole).items():
        assert torch.equal(resumed_state[name], weights), name


def test_a_resumed_run_over_a_stream_equals_an_undisturbed_one(base, tmp_path):
    # Twelve images: the stop lies within the first pass, the end within the second.
    shards = save_shards(tmp_path / "shards")
    options = {"streaming": True, "classes": ("even", "odd"), "steps": 8, "evaluate_every": 4, "batch_size": 2}
    options |= {"num_workers": 2, "tune": "lora"}
    states = {}
    for name, stops in {"stopped": [4, 8], "whole": [8]}.items():
        for stop in stops:
            run = FinetuningRun(run_settings(base, shards, tmp_path / name, **options))
            stop_after(run, stop)
        assert run.trainer.state.global_step == 8
        states[name] = trainable_state(run)
    for name, weights in states["whole"].items():
        assert torch.equal(states["stopped"][name], weights), name


def test_a_damaged_newest_checkpoint_makes_no_difference(base, class_folders, tmp_path, caplog):
    options = {"steps": 3, "evaluate_every": 1, "batch_size": 1}
    stopped = FinetuningRun(run_settings(base, class_folders, tmp_path / "stopped", **options))
    stop_after(stopped, 2)
    path = tmp_path / "stopped" / "checkpoint-2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    FinetuningRun(run_settings(base, class_folders, tmp_path / "stopped", **options)).run()
    assert "model.safetensors' has 5000 bytes instead of " in caplog.text
    assert "checkpoint-2 is removed, and the run goes on from checkpoint-1" in caplog.text
    FinetuningRun(run_settings(base, class_folders, tmp_path / "whole", **options)).run()
    stopped, whole = (load_file(tmp_path / name / FINAL / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[name], weights) for name, weights in whole.items())


def trainable_state(run):
    return {name: p.detach().clone() for name, p in run.trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 2),
        ({"batch_size": 1}, 2),  # ends within an epoch
        ({"steps": 20, "evaluate_every": 1, "patience": 2, "head_learning_rate": 0.0, "validation_share": 0.5}, 3),
    ],
)
def test_finished_run_is_not_trained_again(options, steps, base, class_folders, tmp_path, capsys):
    settings = run_settings(base, class_folders, tmp_path / "run", **options)
    metrics = FinetuningRun(settings).run()
    before = load_file(tmp_path / "run" / FINAL / "model.safetensors")
    assert "has ended before" not in capsys.readouterr().out
    again = FinetuningRun(settings)
    assert again.run() == metrics
    assert again.trainer.state.global_step == steps
    assert "This run has ended before" in capsys.readouterr().out
    after = load_file(tmp_path / "run" / FINAL / "model.safetensors")
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


def test_resumed_run_is_no_more_patient(base, class_folders, tmp_path):
    options = {"steps": 20, "evaluate_every": 1, "patience": 3, "head_learning_rate": 0.0, "validation_share": 0.5}
    stopped = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    stop_after(stopped, 3)
    resumed = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    resumed.run()
    assert resumed.trainer.state.global_step == 4  # as without the stop: three evaluations without a better metric


def test_seconds_count_from_the_first_beginning_on(base, class_folders, tmp_path):
    options = {"steps": 3, "evaluate_every": 1}
    first = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    first.trainer.remove_callback(TrainingTime)
    first.trainer.add_callback(TrainingTime(1000.0))  # as if it went on itself
    stop_after(first, 2)
    second = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    assert second.trainer.seconds_before == 0
    second.run()
    assert 1000 < second.trainer.seconds_before < json.loads((tmp_path / "run" / RESULTS).read_text())["seconds"]


def test_one_run_at_a_time(base, class_folders, tmp_path):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run"))
    with sole_run(tmp_path / "run"), pytest.raises(UserError, match=r"Another run is at work in '.*run'"):
        run.run()
    assert not (tmp_path / "run").exists()  # nothing was written


def test_output_of_other_settings_is_kept(base, class_folders, tmp_path):
    FinetuningRun(run_settings(base, class_folders, tmp_path / "run")).run()
    with pytest.raises(ValueError, match="holds a run with another steps, seed: choose another folder"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", steps=3, seed=1))


def test_a_folder_of_others_is_left_alone(base, class_folders, tmp_path):
    """What has no manifest of ours is removed at the start of a run, as half of a checkpoint."""
    (tmp_path / "others" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"`output` .*others', which holds checkpoint-7"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "others"))
    assert (tmp_path / "others" / "checkpoint-7").is_dir()


def test_damaged_settings_are_named(base, class_folders, tmp_path):
    FinetuningRun(run_settings(base, class_folders, tmp_path / "run")).run()
    (tmp_path / "run" / SETTINGS).write_text('{"steps')
    with pytest.raises(ValueError, match=r"run/settings\.json' .*Restore it"):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run"))


def test_run_from_before_a_setting_existed_is_none_of_other_settings(base, class_folders, tmp_path):
    settings = run_settings(base, class_folders, tmp_path / "run")
    metrics = FinetuningRun(settings).run()
    path = tmp_path / "run" / SETTINGS
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "compile"})
    )
    with pytest.raises(ValueError, match="holds a run with another compile"):
        FinetuningRun(settings.replace(compile=True))
    assert FinetuningRun(settings).run() == metrics


def test_early_stop_and_best_checkpoint(base, class_folders, tmp_path):
    options = {"steps": 20, "evaluate_every": 1, "patience": 2, "head_learning_rate": 0.0, "validation_share": 0.5}
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))
    run.run()
    assert run.trainer.state.global_step == 3  # nothing improves on the first evaluation
    assert run.trainer.state.best_model_checkpoint.endswith("checkpoint-1")


class SpoilHead(TrainerCallback):
    """Turns the head's answers around at the end of a step, before it is measured and saved."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            for parameter in list(model.parameters())[-2:]:  # of its last layer
                parameter.data *= -100


TARGETS = {
    "accuracy": (ClassLabel(names=["common", "rare"]), [0, 0, 0, 0, 0, 1]),
    "mean_absolute_error": (Value("float32"), [1.0] * 6),  # the less the better
}


@pytest.mark.parametrize("is_stopped", [False, True], ids=["whole", "resumed"])
@pytest.mark.parametrize(("metric", "tune"), [("accuracy", "full"), ("mean_absolute_error", "lora")])
def test_the_best_state_is_kept_when_later_ones_are_worse(metric, tune, is_stopped, base, tmp_path):
    feature, labels = TARGETS[metric]
    data, output = save_splits(tmp_path / "data", feature, labels, labels[:2]), tmp_path / "run"
    options = {"tune": tune, "steps": 4, "evaluate_every": 1, "head_learning_rate": 0.05}
    run = FinetuningRun(run_settings(base, data, output, **options))
    run.trainer.add_callback(SpoilHead(3))
    if is_stopped:
        stop_after(run, 3)
        output = output.rename(tmp_path / "moved")  # its best checkpoint too, whose old path Trainer's state names
        run = FinetuningRun(run_settings(base, data, output, **options))
    found = run.run()[metric]
    measured = [entry[f"eval_{metric}"] for entry in run.trainer.state.log_history if f"eval_{metric}" in entry]
    best = max(measured[:2]) if metric == "accuracy" else min(measured[:2])
    assert abs(measured[3] - best) > 0.5
    assert found == pytest.approx(best)
    name = "model.safetensors" if tune == "full" else "adapter_model.safetensors"
    folders = (FINAL, f"checkpoint-{1 + measured.index(best)}", "checkpoint-4")
    final, kept, last = (load_file(output / folder / name) for folder in folders)
    assert all(torch.equal(final[key], weights) for key, weights in kept.items())
    assert any(not torch.equal(final[key], weights) for key, weights in last.items())


def test_a_damaged_best_checkpoint_leaves_the_best_of_the_others(base, tmp_path, caplog):
    data, output = save_splits(tmp_path / "data", Value("float32"), [1.0] * 6, [1.0] * 2), tmp_path / "run"
    settings = run_settings(base, data, output, tune="full", steps=4, evaluate_every=1, head_learning_rate=0.05)
    run = FinetuningRun(settings)
    run.trainer.add_callback(SpoilHead(3))
    stop_after(run, 3)
    best = Path(run.trainer.state.best_model_checkpoint)
    assert best.name in ("checkpoint-1", "checkpoint-2")
    os.truncate(best / "model.safetensors", 100)
    run = FinetuningRun(settings)
    run.trainer.add_callback(SpoilHead(4))
    run.run()
    assert f"{best.name} is removed" in caplog.text
    measured = [entry["eval_mean_absolute_error"] for entry in run.trainer.state.log_history if "eval_loss" in entry]
    assert measured[2] < measured[3]
    final, kept = (load_file(output / folder / "model.safetensors") for folder in (FINAL, "checkpoint-3"))
    assert all(torch.equal(final[key], weights) for key, weights in kept.items())


class Spoil(TrainerCallback):
    """Makes the weights NaN after the checkpoint of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)


def test_diverged_run_keeps_the_checkpoints_from_before(base, class_folders, tmp_path):
    output = tmp_path / "run"
    run = FinetuningRun(run_settings(base, class_folders, output, steps=4, evaluate_every=2))
    run.trainer.add_callback(Spoil(2))
    with pytest.raises(
        TrainingDivergedError, match=r"in step 3 the loss is nan\. Nothing is exported.*`learning_rate`"
    ):
        run.run()
    assert not (output / FINAL).exists()
    assert not (output / "results.json").exists()
    weights = load_file(output / "checkpoint-2" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("task", "data", "config", "message"),
    [
        ("image-classification", "class_folders", {}, "after step 1 the loss is nan"),
        ("object-detection", "coco_folder", TINY_DETECTOR, "after step 1 the model's answers are not finite"),
    ],
)
def test_a_learning_rate_beyond_all_bounds(task, data, config, message, base, tmp_path, request):
    options = {"learning_rate": 1e30, "head_learning_rate": 1e30, "warmup_share": 0.0, "evaluate_every": 1}
    settings = run_settings(
        base, request.getfixturevalue(data), tmp_path / "run", task, tune="full", config=config, **options
    )
    with pytest.raises(TrainingDivergedError, match=message):
        FinetuningRun(settings).run()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / FINAL).exists()


def test_weights_that_are_not_finite_are_not_exported(base, class_folders, tmp_path):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run"))
    weights = {**run.model.state_dict(), "classifier.1.bias": torch.tensor([0.0, torch.inf])}
    with pytest.raises(
        TrainingDivergedError, match=r"1 of 4 trained weights are not finite, such as classifier\.1\.bias"
    ):
        run.save(weights)
    assert not (tmp_path / "run" / FINAL).exists()


def test_validation_that_measures_nothing(base, voc_folder, tmp_path):
    for split in ("train", "valid"):
        shutil.copytree(voc_folder, tmp_path / "split" / split)
    for path in (tmp_path / "split" / "valid" / "masks").iterdir():
        save_palette_mask(path, np.full((HEIGHT, WIDTH), 255))
    run = FinetuningRun(run_settings(base, tmp_path / "split", tmp_path / "run", "semantic-segmentation"))
    with pytest.raises(ValueError, match="metric `mean_iou` of the validation images is nan: no label counts"):
        run.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": (40, 48)},
            r"`size` must have sides that are multiples of 16 .* got 40 x 48\. The nearest valid size is 32 x 48",
        ),
        (
            {"tune": "lora", "lora_targets": ("qkv", "fc3")},
            r"`lora_targets` must be one of \['qkv', 'proj', 'fc1', 'fc2'\], got 'fc3'\. Did",
        ),
        ({"config": {"drop_path": 0.1}}, r"`config` has no field 'drop_path'\. Did you mean 'drop_path_rate'"),
        (
            {"config": {"class_weights": [1.0, 2.0]}},
            r"`config` cannot set 'class_weights': the labels and the settings",
        ),
        (
            {"config": {"hidden_size": 48, "intermediate_size": 192}},
            r"lacks .* of the backbone in the shape that the .*, such as radio_model\.",
        ),
        (
            {"window_size": 1, "config": {"vitdet_window_size": 2}},
            r"`config` cannot set 'vitdet_window_size': .* \(1\)",
        ),
        ({"class_weights": (1.0, 2.0, 3.0)}, r"one number for each of the 2 classes \(cat, dog\), got 3"),
    ],
)
def test_settings_that_do_not_fit(base, class_folders, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", **options))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported: launch with DDP or FSDP"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP version 1 is not supported: set `fsdp_version"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "`quantize` 4 is not supported with FSDP: launch with"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "`dynamo_backend` of Accelerate, .* set `compile`, which compiles"),
    ],
)
def test_launchers_that_are_refused(base, class_folders, tmp_path, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        FinetuningRun(run_settings(base, class_folders, tmp_path / "run", tune="lora", quantize=4))


def test_run_that_never_began_is_no_obstacle(base, class_folders, tmp_path, monkeypatch):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", steps=2))
    monkeypatch.setattr(run.trainer, "train", Mock(side_effect=ValueError("a mask is wrong")))
    with pytest.raises(ValueError, match="a mask is wrong"):
        run.run()
    assert FinetuningRun(run_settings(base, class_folders, tmp_path / "run", steps=3)).run()


def test_weights_of_an_earlier_tuning_are_left_behind(base, class_folders, tmp_path):
    FinetuningRun(run_settings(base, class_folders, tmp_path / "first", class_weights=(1.0, 2.0))).run()
    assert RadioConfig.from_pretrained(tmp_path / "first" / "final").class_weights == [1.0, 2.0]
    second = FinetuningRun(run_settings(tmp_path / "first" / "final", class_folders, tmp_path / "second"))
    assert second.model.config.class_weights is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_adapters_train_on_quantized_blocks(bits, class_folders, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wide = RadioConfig.from_preset("radio-test", hidden_size=64, preferred_resolution=[32, 48])  # one block of NF4
    RadioModel(wide).save_pretrained(tmp_path / "base")
    options = {"tune": "lora", "quantize": bits, "merge": True}
    run = FinetuningRun(run_settings(tmp_path / "base", class_folders, tmp_path / "run", **options))
    linear_class = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}[bits]
    quantized = [name for name, module in run.model.named_modules() if isinstance(module, linear_class)]
    assert len(quantized) == 4 * wide.num_hidden_layers
    assert all(".blocks." in name for name in quantized)
    run.run()
    adapter = load_file(tmp_path / "run" / "final" / "adapter_model.safetensors")
    assert {weights.dtype for weights in adapter.values()} == {torch.float32}
    assert any(weights.any() for name, weights in adapter.items() if "lora_B" in name)  # it starts at zero
    merged = load_file(tmp_path / "run" / "merged" / "model.safetensors")
    assert {weights.dtype for weights in merged.values()} <= {torch.float32, torch.int64}
    assert "quantization_config" not in json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    if Version(transformers.__version__) >= Version("5.18"):  # before, it reads no head
        pixels = torch.rand(1, 3, 32, 48)
        final, plain = (
            RadioForImageClassification.from_pretrained(tmp_path / "run" / name) for name in (FINAL, MERGED)
        )
        with torch.no_grad():
            torch.testing.assert_close(final.eval()(pixels).logits, plain.eval()(pixels).logits, atol=1e-5, rtol=0)


def test_balanced_class_weights_are_saved(base, class_folders, tmp_path):
    shutil.rmtree(class_folders / "cat")
    shutil.copytree(class_folders / "dog", class_folders / "cat")
    (class_folders / "cat" / "0.png").unlink()
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", class_weights="balanced"))
    labels = torch.tensor(run.task.images.train["target"][:]).bincount()
    expected = (labels.sum() / (2 * labels)).tolist()
    assert run.model.config.class_weights == pytest.approx(expected)


def test_training_arguments_carry_the_settings(base, class_folders, tmp_path):
    options = {"precision": "bf16", "accumulation": 3, "evaluate_every": 5, "seed": 4, "max_grad_norm": 0.1}
    arguments = training_arguments(run_settings(base, class_folders, tmp_path, **options))
    assert arguments.bf16
    assert arguments.gradient_accumulation_steps == 3
    assert (arguments.eval_steps, arguments.save_steps) == (5, 5)
    assert arguments.seed == 4
    assert arguments.max_grad_norm == pytest.approx(0.1)
    tasks = {task: tuning_settings(task) for task in ("image-classification", "object-detection")}
    assert [training_arguments(each).max_grad_norm for each in tasks.values()] == [1.0, 0.1]


def test_a_process_keeps_to_one_of_several_gpus(base, class_folders, tmp_path):
    arguments = training_arguments(run_settings(base, class_folders, tmp_path))
    assert use_one_gpu(arguments) is None
    arguments._n_gpu = 4
    assert use_one_gpu(arguments) == "One of 4 GPUs is used: start with `accelerate launch` to use all."
    assert arguments.n_gpu == 1


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    ("labels", "metric", "is_greater_better"),
    [
        ([["a"], ["a", "b"], [], ["b"], ["c"], ["a", "c"]], "mean_average_precision", True),
        ([0.5, 1.0, 2.0, -1.0, 0.0, 3.5], "mean_absolute_error", False),
    ],
)
def test_labels_decide_which_classifier_is_trained(labels, metric, is_greater_better, base, class_folders, tmp_path):
    pictures = [str(path) for path in sorted(class_folders.rglob("*.png"))]
    table = Dataset.from_dict({"image": pictures, "label": labels}).cast_column("image", ImageFeature())
    DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "data")
    run = FinetuningRun(run_settings(base, tmp_path / "data", tmp_path / "run"))
    metrics = run.run()
    best = run.trainer.state.best_metric
    assert best == pytest.approx(metrics[metric])
    assert run.trainer.args.greater_is_better is is_greater_better
    model = RadioForImageClassification.from_pretrained(tmp_path / "run" / "final")
    assert model.config.problem_type == run.task.problem_type
    assert (tmp_path / "run" / "pictures" / "step-2.png").is_file()


@pytest.mark.parametrize("size", [0, 3000])
def test_damaged_weights_of_the_checkpoint_are_named(size, base, class_folders, tmp_path):
    shutil.copytree(base, tmp_path / "damaged")
    os.truncate(tmp_path / "damaged" / "model.safetensors", size)
    with pytest.raises(ValueError, match=r"weights in '.*damaged'"):
        FinetuningRun(run_settings(tmp_path / "damaged", class_folders, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
