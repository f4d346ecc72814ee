import json

import pytest
import torch
from PIL import Image
from tiny_distillation import distil
from tiny_upsampling import PatternTeacher

import training.teachers.registry
from training.recipe import RecipeError, load_recipe
from training.targets.feature_cache import weights_fingerprint
from training.teachers.registry import teacher_of_recipe
from training.upsampling import METHODS, draw_view, main


FAST = ["num_steps=8", "learning_rate=0.01", "warmup_steps=0", "batch_size=2", "views=2", "num_views=2"]
OPTIONS = [*FAST, "width=16", "measured_images=2", "device=cpu"]
SEGMENTER = "{name: segmenter, kind: pattern}"
SEMANTIC = "{name: semantic, kind: tiny, options: {summary_dim: 10, feature_dim: 12}}"
TEACHERS = f"teachers=[{SEMANTIC}, {SEGMENTER}]"


@pytest.fixture
def recipe_with_pattern(recipe_file, tiny_world, monkeypatch, tmp_path):
    monkeypatch.setitem(training.teachers.registry.TEACHER_KINDS, "pattern", PatternTeacher)
    for number in range(20):
        (tmp_path / "images").mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (80, 80, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number}.png")
    return recipe_file


def train(recipe: str, tmp_path, *words: str) -> int:
    source = [f"data.source={tmp_path / 'images'}", "data.num_images=null", TEACHERS]
    return main(["segmenter", "--recipe", recipe, "--output", str(tmp_path / "run"), *OPTIONS, *source, *words])


def test_from_the_command_into_a_recipe(recipe_with_pattern, tmp_path, capsys):
    assert train(recipe_with_pattern, tmp_path) == 0, capsys.readouterr().err
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["features.png", "measurements.json", "run.txt", "upsampler"]
    assert list(json.loads((run / "measurements.json").read_text())["summary"]) == list(METHODS)
    said = capsys.readouterr().out
    assert f"teachers.segmenter.upsampler={run / 'upsampler'}" in said
    assert train(recipe_with_pattern, tmp_path) == 1
    assert "exists already" in capsys.readouterr().err

    # 48 px are 3 cells of the student, 64 px 4, as many as the teacher has; 128 px are twice as many.
    changes = [TEACHERS, "teachers.segmenter.run_mode=fixed", "partitions.low.sizes_px=[128]", "schedule.num_steps=2"]
    changes += ["standardization={calibration_steps: 1, estimation_steps: 1}", "schedule.warmup_steps=0"]
    folders = {"featsharp": str(run / "upsampler"), "tiles": "null", "bilinear": "null"}
    ways = {
        how: [*changes, f"teachers.segmenter.upsample={how}", f"teachers.segmenter.upsampler={folder}"]
        for how, folder in folders.items()
    }
    images = torch.rand(2, 3, 128, 128)
    teachers = {how: teacher_of_recipe(load_recipe(recipe_with_pattern, way).teachers[1]) for how, way in ways.items()}
    assert weights_fingerprint(teachers["featsharp"]) != weights_fingerprint(teachers["tiles"])  # a cache notices
    answers = {how: teacher.answer(images).features for how, teacher in teachers.items()}
    for how in ("tiles", "bilinear"):
        assert (answers["featsharp"] - answers[how]).abs().mean() > 0.01
    assert distil(recipe_with_pattern, str(tmp_path / "distilled"), *ways["featsharp"]) is not None


def test_wrong_upsamplers_are_refused(recipe_with_pattern, tmp_path):
    assert train(recipe_with_pattern, tmp_path, "measured_images=0") == 0
    fixed = [TEACHERS, "teachers.segmenter.run_mode=fixed"]
    with pytest.raises(RecipeError, match=r"`teachers.segmenter.upsampler` must be a folder that .*, got None"):
        load_recipe(recipe_with_pattern, [*fixed, "teachers.segmenter.upsample=featsharp"])

    def build(*changes: str, number: int = 1):
        return teacher_of_recipe(load_recipe(recipe_with_pattern, [*fixed, *changes]).teachers[number])

    sharp = "teachers.segmenter={upsample: featsharp, upsampler: %s}"
    with pytest.raises(ValueError, match=r"Teacher 'segmenter': `upsampler` must be a folder with config.json"):
        build(sharp % (tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"Teacher 'segmenter': .*with `input_size_px` 64, got .* with 32"):
        build(sharp % (tmp_path / "run" / "upsampler"), "teachers.segmenter.input_size_px=64")
    with pytest.raises(ValueError, match=r"Teacher 'segmenter': .* with `feature_dim` 7|with `options`"):
        build(sharp % (tmp_path / "run" / "upsampler"), "teachers.segmenter.options={feature_dim: 7}")
    with pytest.raises(ValueError, match=r"`run_mode` must be 'fixed' for `upsample` 'featsharp', got 'native'"):
        build(sharp % (tmp_path / "run" / "upsampler"), "teachers.segmenter.run_mode=native")


def test_unknown_teacher_is_one_line(recipe_with_pattern, tmp_path, capsys):
    assert main(["segmnter", "--recipe", recipe_with_pattern, TEACHERS]) == 1
    assert "Did you mean 'segmenter'" in capsys.readouterr().err


def test_views_are_as_large_as_was_asked(recipe_with_pattern, monkeypatch, tmp_path):
    asked = set()

    def draw(*arguments, largest):
        asked.add(largest)
        return draw_view(*arguments, largest=largest)

    monkeypatch.setattr("training.upsampling.draw_view", draw)
    assert train(recipe_with_pattern, tmp_path, "num_steps=1", "largest_view=0.5", "measured_images=0") == 0
    assert asked == {0.5}
