"""Each command as a function: the same work, and an object with paths, scores and the model."""

import signal
from pathlib import Path

import pytest
import tiny_distillation
import torch
from tiny_distillation import RECIPE, install_tiny_world, leave_progress_undrawn
from tuning_fixtures import base, class_folders, one_figure_image, own_datasets_cache

from modeling_radio import RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.api import distill, evaluate, extract, finetune, search
from modeling_radio.core.interruption import Interrupted
from modeling_radio.metrics.results import Results


__all__ = ["base", "class_folders", "one_figure_image", "own_datasets_cache"]

pytestmark = pytest.mark.usefixtures("one_thread", "own_datasets_cache", "one_figure_image")

FEW_STEPS = {"num_steps": 4, "warmup_steps": 1}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The file of a tiny recipe, in the working folder."""
    install_tiny_world(monkeypatch)
    leave_progress_undrawn(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return "tiny.yaml"


def test_a_student_is_distilled_in_two_sessions(recipe):
    begun = distill(recipe=recipe, stop_at=2, changes={"schedule": FEW_STEPS})
    assert (str(begun.output), begun.final) == ("runs/tiny", None)
    with pytest.raises(ValueError, match="`final`"):
        begun.model()
    done = distill(recipe=recipe, changes={"schedule.num_steps": 4, "schedule.warmup_steps": 1})
    assert done.final == done.output / "final"
    assert done.scores["features/semantic"] > 0
    model = done.model()
    assert not model.training
    assert set(model(torch.rand(1, 3, 32, 32), adaptor_names=["semantic"]).adaptors) == {"semantic"}


def test_runs_of_one_process_may_differ_in_precision(recipe):
    for precision in ("bf16", "no"):
        changes = [f"mixed_precision={precision}", "schedule={num_steps: 2, warmup_steps: 1}"]
        assert distill(recipe=recipe, output=precision, changes=changes).final is not None


def test_stages_have_the_scores_of_the_last(recipe):
    changes = {"stages": [{"name": "first"}, {"name": "second"}], "schedule": FEW_STEPS}
    done = distill(recipe=recipe, output="two", changes=changes)
    assert done.final == done.output / "final"
    assert done.scores.keys() >= {"features/semantic"}


def test_an_interruption_ends_a_distillation_with_a_checkpoint(recipe, monkeypatch):
    class Interrupting(tiny_distillation.TinyTeacher):
        def encode(self, pixel_values):
            if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # in a step, not in the calibration
                signal.raise_signal(signal.SIGINT)
            return super().encode(pixel_values)

    monkeypatch.setitem(tiny_distillation.modeling_radio.training.teachers.registry.TEACHER_KINDS, "tiny", Interrupting)
    with pytest.raises(Interrupted):
        distill(recipe=recipe, output="run")
    assert list((Path("run") / "checkpoints").iterdir())


def test_a_classifier_is_tuned(base, class_folders, tmp_path):
    options = {"batch_size": 2, "steps": 2, "num_workers": 0, "validation_share": 0.34}
    probe = finetune(
        checkpoint=base, task="image-classification", data=class_folders, output=tmp_path / "probe", **options
    )
    assert probe.merged is None
    assert (probe.output / "results.json").is_file()
    assert 0 <= probe.scores["accuracy"] <= 1
    model = probe.model()
    assert isinstance(model, RadioForImageClassification)
    assert sorted(model.config.id2label.values()) == ["cat", "dog"]
    options |= {"tune": "lora", "lora_rank": 2, "merge": True, "output": tmp_path / "lora"}
    tuned = finetune(checkpoint=str(base), task="image-classification", data=str(class_folders), **options)
    pixels = torch.rand(1, 3, 32, 48)
    adapted = RadioForImageClassification.from_pretrained(tuned.final).eval()(pixels).logits
    torch.testing.assert_close(tuned.model()(pixels).logits, adapted)


@pytest.fixture
def checkpoint(base, tmp_path):
    """The tiny backbone with a processor, which the commands of a folder of images open."""
    model = RadioModel.from_pretrained(base)
    model.save_pretrained(tmp_path / "model")
    RadioImageProcessor.from_model_config(model.config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_is_measured(checkpoint, class_folders, tmp_path):
    options = {"tasks": ["knn"], "num_workers": 0, "cache": tmp_path / "features", "neighbors": 1}
    measured = evaluate(checkpoint=checkpoint, data=str(class_folders), **options)
    assert measured.written == []
    assert 0 <= measured.scores["knn accuracy"] <= 1
    assert "student" in str(measured)
    assert "raw pixels" in str(measured)
    assert isinstance(measured.model(), RadioModel)
    written = evaluate(checkpoint=checkpoint, data=str(class_folders), output=tmp_path / "results.json", **options)
    assert [path.name for path in written.written] == ["results.json", "results.html"]
    assert Results.load(tmp_path / "results.json").measurements == written.results.measurements


def test_features_are_extracted_and_searched(checkpoint, class_folders, tmp_path):
    made = extract(checkpoint=checkpoint, output=tmp_path / "features", data=str(class_folders), num_workers=0)
    assert made.written.num_rows == len(made.dataset()["train"]) == 6
    assert isinstance(made.model(), RadioModel)
    picture = next(class_folders.rglob("*.png"))
    hits = search(folder=tmp_path / "features", query=str(picture), checkpoint=checkpoint, top=2)
    assert [len(hits), round(hits[0].cosine, 3)] == [2, 1.0]


@pytest.mark.parametrize(
    ("run", "options", "name"),
    [
        (distill, {"recipe": "demo", "changes": {"schedule": {"num_step": 3}}}, "'schedule.num_step'"),
        (distill, {"recipe": "demo", "changes": 5}, "`changes`"),
        (distill, {"recipe": "demo", "ouput": "x"}, "'ouput'"),
        (finetune, {"checkpoint": "x", "task": "nothing", "data": "y"}, "`task`"),
        (evaluate, {"checkpoint": "missing", "tasks": ["knn"]}, "`checkpoint`"),
        (extract, {"checkpoint": "missing", "output": "x"}, "`data`"),
    ],
)
def test_wrong_settings_are_value_errors(run, options, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=name):
        run(**options)
    assert list(tmp_path.iterdir()) == []
