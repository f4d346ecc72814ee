"""The demo's recipe, small: in sessions of no time at all, as its own teacher, and with its teachers themselves."""

import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_distillation import last_state
from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from modeling_radio import RadioModel
from modeling_radio.core.interruption import OutOfTime
from modeling_radio.core.packages import PackageUnavailableError
from modeling_radio.studies.study import open_study
from modeling_radio.training.distillation.stages import run_recipe
from modeling_radio.training.recipes.recipe import Recipe, load_recipe


pytestmark = pytest.mark.usefixtures("one_thread")

NUM_STEPS = 2
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = (
    "student.preset=radio-test",
    "student.config={num_hidden_layers: 2, vitdet_num_global: 1}",
    "student.adaptor.hidden_size=16",
    "partitions.low.sizes_px=[32, 48]",
    "partitions.low.batch_size=4",
    "standardization.calibration_steps=1",
    f"schedule={{num_steps: {NUM_STEPS}, warmup_steps: 1}}",
    "logging={trackers: [], metrics_every_steps: null}",
)
TINY = (
    "teachers.efficientnet-lite0={kind: siglip2, source: siglip2}",
    "teachers.dinov2-s-saliency={kind: dinov2, source: dinov2}",
    "teachers.nanodet-g={kind: dinov2, source: dinov2}",
    "data={source: images, num_images: null, image_size_px: 48, num_workers: 0}",
)
# The rounding of bfloat16 would hide what two processes do otherwise, and Muon makes a full step of any.
EXACT = ("mixed_precision=no", "optimizer.name=adamw", "optimizer.eps=1")


def small_recipe(*changes: str) -> Recipe:
    recipe = load_recipe("demo", [*SMALL, *TINY, *changes])
    precise = [entry.replace(dtype="float32") for entry in recipe.teachers]
    return recipe.replace(teachers=precise) if "mixed_precision=no" in changes else recipe


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the working directory hold two tiny random models and some images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=24, patch_size=16, image_size=32)).save_pretrained(
        "siglip2"
    )
    Dinov2Model(Dinov2Config(**SIZES, patch_size=14, image_size=56)).save_pretrained("dinov2")
    Path("images").mkdir()
    for number in range(6):
        pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(Path("images") / f"{number}.png")


def test_sessions_without_time_go_on_from_each_other_to_the_same_student() -> None:
    recipe = small_recipe(*EXACT)
    with pytest.raises(OutOfTime, match="teacher features"):
        run_recipe(recipe, Path("parts"), deadline=time.monotonic())
    run_recipe(recipe, Path("whole"))
    for step in range(1, NUM_STEPS + 1):
        with pytest.raises(OutOfTime, match=rf"step {step} of 2, .*'parts/checkpoints'"):
            run_recipe(recipe, Path("parts"), deadline=time.monotonic())
    assert run_recipe(recipe, Path("parts"), deadline=time.monotonic()) is not None
    whole, parts = (last_state(name, NUM_STEPS) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_student_of_the_demos_student_has_the_same_heads_and_answers_in_the_same_spaces() -> None:
    study = open_study("student_as_teacher").study
    direct, through = study.arms
    assert direct.changes == []
    final = run_recipe(small_recipe(), Path("runs/demo"))
    recipe = small_recipe(*through.changes)
    assert {entry.kind for entry in recipe.teachers} == {"radio"}
    second = run_recipe(recipe, Path("second"))
    assert final is not None
    assert second is not None
    first_heads, second_heads = (RadioModel.from_pretrained(folder).config.adaptors for folder in (final, second))
    assert first_heads == second_heads


@pytest.mark.packages
@pytest.mark.tour
def test_two_steps_with_the_teachers_themselves() -> None:
    data = "data={num_images: 8, image_size_px: 64, num_workers: 0}"
    try:
        final = run_recipe(load_recipe("demo", [*SMALL, data]), Path("run"))
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    assert final is not None
    assert RadioModel.from_pretrained(final).config.adaptor("nanodet-g").summary_dim == 384
