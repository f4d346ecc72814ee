"""A study small enough for tests: two arms of the tiny distillation, measured on a few images of smooth colors."""

from pathlib import Path

import torch

from modeling_radio.demo.assets import DemoAssets
from modeling_radio.demo.evaluation_data import DemoData
from modeling_radio.demo.images import ClassificationSet, SegmentationSet
from modeling_radio.evaluation.data import Stacked
from modeling_radio.evaluation.features import FeatureStore, Wanted
from modeling_radio.evaluation.students import StudentEvaluation
from modeling_radio.studies.held_out import HeldOut
from modeling_radio.studies.raw_results import HeldOutSums, RunResult, add_run, claim
from modeling_radio.studies.study import OpenedStudy
from modeling_radio.training.recipes.recipe import decisive_part
from modeling_radio.training.student.build import student_patch_size
from modeling_radio.training.teachers.registry import build_teachers


STUDY = """
question: Does it matter?
recipe: %s
changes:
  - schedule.num_steps=2
  - schedule.warmup_steps=1
  - teachers.semantic.role=semantic
  - teachers.segmenter.role=task
seeds: [0, 1]
primary: dense_error/worst
sizes_px: [32, 48]
num_images: 8
arms:
  - {name: plain}
  - {name: adaptive, changes: [balancing.method=adaptive, balancing.start_step=0, balancing.ramp_steps=0]}
"""


def write_study(recipe_file: str, text: str = STUDY) -> str:
    """Write the study beside a recipe and return its path."""
    path = Path(recipe_file).with_name("study.yaml")
    path.write_text(text % recipe_file if "%s" in text else text)
    return str(path)


def toy_held_out(opened: OpenedStudy) -> HeldOut:
    """Return held-out images in place of the demo's: eight of four sources."""
    teachers = build_teachers(opened.reference.teachers, student_patch_size(opened.reference))
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    images = (torch.nn.functional.interpolate(coarse, (48, 48), mode="bilinear") * 255).byte()
    labels, masks = torch.tensor([0, 1] * 4), torch.zeros(8, 48, 48, dtype=torch.long)
    masks[:, :, 24:] = 1
    data = DemoData(
        "noise",
        DemoAssets((), (), (), ("a", "b"), (), "toy"),
        ClassificationSet(images, labels, images.flip(0), labels.flip(0), ("a", "b")),
        SegmentationSet(images, masks, images, masks, ("left", "right")),
        images,
    )
    evaluation = StudentEvaluation(opened.reference, data, teachers, 32)
    store, wanted = FeatureStore(), Wanted(dense=True)
    answers = {
        name: store.extract(evaluation.teacher(name), Stacked(images), "", wanted, size_px=32) for name in teachers
    }
    return HeldOut(evaluation, [data], images, torch.arange(8) // 2, answers, opened.study.sizes_px)


def toy_sums(opened: OpenedStudy) -> HeldOutSums:
    """Return what toy results were measured on: eight images of three pictures."""
    weights = {f"dense_error/{teacher.name}": [1.0, 2.0, 1.0] for teacher in opened.reference.teachers}
    return HeldOutSums("images", 8, 32, list(opened.study.sizes_px), {**weights, "consistency": [2.0, 4.0, 2.0]})


def toy_result(opened: OpenedStudy, arm: str, seed: int, error: float) -> RunResult:
    """Return a raw result: the error of one of two teachers, the other's is 0.1."""
    first, second = (f"dense_error/{teacher.name}" for teacher in opened.reference.teachers)
    sums = {first: [error, 2 * error, error * 1.01], second: [0.1, 0.2, 0.1], "consistency": [1.0, 2.0, 1.0]}
    numbers = {"fixed_pattern": error / 10, "shift_error": 0.2, "knn_sets": 0.5, "miou": 0.25}
    recipe = decisive_part(opened.recipe(arm, seed).to_dict()) if arm in opened.recipes else {"of": "old"}
    return RunResult(arm, seed, recipe, sums, numbers, gone=arm not in opened.recipes)


def save_toy_results(opened: OpenedStudy, errors: dict[tuple[str, int], float]) -> None:
    """Write raw results, by arm and seed; arms that the study does not have are gone."""
    claim(opened.raw_results, toy_sums(opened))
    for (arm, seed), error in errors.items():
        add_run(opened.raw_results, toy_result(opened, arm, seed, error))
