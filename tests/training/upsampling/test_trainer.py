"""FeatSharp's training, on a random teacher with a pattern of positions and images with sharp edges."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_recipes import small_recipe
from tiny_distillation import distil
from tiny_upsampling import GRID, SIDE, Blocks, PatternTeacher, tiny_teacher_features, tiny_trainer
from torch.nn import functional as F

from modeling_radio.core.checked_tensors import DamagedFileError
from modeling_radio.core.files import RUN_FILE
from modeling_radio.core.interruption import TrainingDivergedError
from modeling_radio.core.settings import SettingsError
from modeling_radio.training.recipes.recipe import RecipeError, load_recipe
from modeling_radio.training.targets.feature_cache import weights_fingerprint
from modeling_radio.training.teachers import registry
from modeling_radio.training.teachers.featsharp import FeatSharp, UpsamplerConfig, cut_tiles
from modeling_radio.training.upsampler import main
from modeling_radio.training.upsampling import trainer as upsampling
from modeling_radio.training.upsampling.settings import UpsamplerSettings
from modeling_radio.training.upsampling.trainer import (
    METHODS,
    STATE_FILE,
    WHOLE,
    FixedTeacherFeatures,
    SquareView,
    ViewReader,
    draw_view,
    measure,
    summarize,
    table_of,
    train_upsampler,
    view_of_image,
    view_of_map,
)


@pytest.fixture(autouse=True)
def small_constants(monkeypatch):
    constants = {"WIDTH": 16, "WARMUP_STEPS": 5, "SAVE_EVERY": 4, "MEASURED_IMAGES": 2}
    for name, value in constants.items():
        monkeypatch.setattr(upsampling, name, value)


def test_settings_are_checked():
    assert UpsamplerSettings(teacher="clip").folder() == Path("runs/upsamplers/clip")
    for changes, named in (({"factor": 1}, "`factor`"), ({"views": 8}, "`views`")):
        with pytest.raises(SettingsError, match=named):
            UpsamplerSettings(teacher="clip", **changes)


def test_views_lie_inside_and_differ():
    views = [draw_view(4096, 0, index, number) for index in range(8) for number in range(8)]
    assert len(set(views)) == 64
    assert {view.is_mirrored for view in views} == {False, True}
    for view in views:
        assert 0.5 <= view.side <= 1
        assert min(view.top, view.left) >= 0
        assert max(view.top, view.left) + view.side <= 1
    assert draw_view(4096, 0, 3, 5) == views[3 * 8 + 5]
    assert draw_view(4096, 1, 3, 5) != views[3 * 8 + 5]


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_view_of_a_map_is_where_that_of_the_image_is(is_mirrored):
    image = F.interpolate(torch.rand(1, 3, 5, 5), 64, mode="bicubic").clamp(0, 1)
    view = SquareView(8 / 64, 16 / 64, 40 / 64, is_mirrored)
    pixels = F.interpolate(view_of_image(image, view, 40), 8, mode="area")
    torch.testing.assert_close(F.avg_pool2d(view_of_map(image, [view], 32), 4), pixels, atol=0.01, rtol=0)
    other = view._replace(is_mirrored=not is_mirrored)
    assert (F.avg_pool2d(view_of_map(image, [other], 32), 4) - pixels).abs().mean() > 0.02


@torch.no_grad()
def test_a_new_reader_takes_the_mean_and_a_trained_one_chooses():
    maps = torch.randn(2, 5, 16, 16)
    reader = ViewReader(5)
    torch.testing.assert_close(reader(maps, [WHOLE, WHOLE], 4), F.avg_pool2d(view_of_map(maps, [WHOLE] * 2, 16), 4))
    reader.place[0] = 30  # the first sample of each patch
    torch.testing.assert_close(reader(maps, [WHOLE, WHOLE], 4), maps[:, :, ::4, ::4], atol=1e-4, rtol=0)


def test_an_example_has_the_teachers_features_and_the_teacher_runs_once_for_each():
    teacher_features = tiny_teacher_features()
    example = teacher_features.example([3, 5], [2, 1])
    assert example.images.shape == (2, 3, 2 * SIDE, 2 * SIDE)
    assert example.tiles.shape == (2, 6, 2 * GRID, 2 * GRID)
    assert example.targets.shape == (3, 2, 6, GRID, GRID)
    assert [len(views) for views in example.views] == [2, 2, 2]
    assert example.views[0] == [WHOLE, WHOLE]
    assert torch.equal(example.targets[0], example.whole)
    corner = teacher_features.run(cut_tiles(teacher_features.pixels(5), 2, 2)[3:])[0]
    torch.testing.assert_close(example.tiles[1, :, GRID:, GRID:], corner, rtol=2**-8, atol=0)
    assert teacher_features.larger(5).shape == example.tiles[1:].shape
    teacher_features.run = None
    assert torch.equal(teacher_features.example([3, 5], [2, 1]).targets, example.targets)


def test_features_without_room_are_computed_again_and_are_the_same():
    everything, few = tiny_teacher_features(), tiny_teacher_features(num_images=2)
    few.example([0, 1], [1, 2, 3])
    assert few.num_bytes(2, 3) == sum(kept.nbytes for kept in few._kept.values())
    of_map = everything.num_bytes(1, 1) / 6  # the whole, a view and four tiles
    teacher_features = FixedTeacherFeatures(
        everything.teacher, everything.images, 2, seed=0, memory_gb=2 * of_map / 1e9
    )
    wanted = everything.example([0, 1], [1])
    for _ in range(2):
        for found, expected in zip(teacher_features.example([0, 1], [1]), wanted, strict=True):
            assert found == expected if isinstance(found, list) else torch.equal(found, expected)
    teacher_features.run = None
    teacher_features.of_view(0, 0)
    teacher_features.of_view(1, 0)
    with pytest.raises(TypeError):
        teacher_features.of_view(0, 1)


def test_training_lowers_the_loss_and_finds_the_pattern(tmp_path):
    trainer = tiny_trainer(tmp_path)
    losses = trainer.run(tmp_path)
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    truth = trainer.teacher_features.teacher.pattern
    truth = (truth - truth.mean((1, 2), keepdim=True)).flatten()
    found = trainer.upsampler.centered_pattern().detach().flatten() * trainer.upsampler.scale
    assert torch.cosine_similarity(truth, found, dim=0) > 0.75


def test_views_of_other_images_agree_better_and_the_map_is_another(tmp_path):
    trainer = tiny_trainer(tmp_path, num_images=64)
    trainer.run(tmp_path)
    teacher_features = tiny_teacher_features(num_images=80)
    teacher_features.images.images = teacher_features.images.images[64:]  # it was trained on those before
    example = teacher_features.example([12, 13], [1, 2])
    with torch.no_grad():
        bilinear, _, tiles, sharp = (method(trainer.upsampler, example) for method in METHODS.values())
    for other in (bilinear, tiles):
        assert (sharp - other).square().mean() > 0.05 * other.var()
    summary = summarize(measure(trainer.upsampler, teacher_features, num_images=16, num_views=3))
    best = summary.pop("FeatSharp")
    assert best["to_larger"] < min(summary["bilinear"]["to_larger"], summary["tiles"]["to_larger"])
    for other in summary.values():
        assert best["views"] < 0.95 * other["views"]
        assert other["worse_on_views"] > 12


def test_a_run_that_was_stopped_ends_the_same_with_the_same_settings_only(tmp_path):
    whole, first = (tiny_trainer(tmp_path / name, num_steps=10) for name in ("whole", "first"))
    whole.run(tmp_path / "whole")
    first.fit_statistics()
    for _ in range(6):
        first.train_step()
    first.save(tmp_path / "first" / STATE_FILE)
    with pytest.raises(ValueError, match=r"training.safetensors' .*\(learning_rate: 0.01 -> 0.001\)"):
        tiny_trainer(tmp_path, num_steps=10, learning_rate=1e-3).run(tmp_path / "first")
    second = tiny_trainer(tmp_path / "first", num_steps=10, memory_gb=1)
    assert len(second.run(tmp_path / "first")) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_damaged_state_is_refused_by_name(tmp_path):
    tiny_trainer(tmp_path, num_steps=2).run(tmp_path)
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for content in (flipped, whole[:-100], b""):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError) as error:
            tiny_trainer(tmp_path, num_steps=2).run(tmp_path)
        assert error.value.path == path


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run_and_moves_no_weight(part, tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.fit_statistics()
    if part == "loss":
        trainer.upsampler.scale.fill_(float("nan"))
    else:
        trainer.upsampler.pattern.register_hook(lambda gradient: gradient / 0)
    before = {name: value.clone() for name, value in trainer.named_parameters()}
    with pytest.raises(TrainingDivergedError, match=f"{part} of step 0"):
        trainer.train_step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.named_parameters())


@pytest.fixture
def upsampler():
    torch.manual_seed(0)
    return FeatSharp(UpsamplerConfig(kind="pattern", feature_dim=6, input_size_px=32, grid=4, width=16, num_heads=2))


def test_errors_are_shares_of_the_variance_in_a_coarse_part_and_detail(upsampler, monkeypatch):
    teacher_features = tiny_teacher_features(num_images=2)

    def summarized(*maps):
        """Measure a method that returns these maps, one for each image."""
        left = iter(maps)
        monkeypatch.setitem(METHODS, "tiles", lambda *_: next(left))
        return summarize(measure(upsampler, teacher_features, num_images=len(maps), num_views=2))["tiles"]

    of_mean = summarized(*torch.zeros(2, 1, 6, 8, 8))  # the mean that is subtracted
    assert (of_mean["to_larger"], of_mean["views"]) == pytest.approx((1, 1))
    larger = [teacher_features.larger(index) for index in range(2)]
    assert summarized(larger[0])["to_larger"] == 0
    shifted = summarized(*(each + 1 for each in larger))
    checkered = torch.ones(8, 8).where(torch.arange(8)[:, None] % 2 == torch.arange(8) % 2, -1)
    sharper = summarized(*(each + checkered for each in larger))
    assert (shifted["detail"], sharper["coarse"]) == pytest.approx((0, 0), abs=1e-9)
    assert min(shifted["coarse"], sharper["detail"]) > 0.01
    monkeypatch.undo()
    teacher_features.teacher.runs_at_any_size = False
    table = table_of(summarize(measure(upsampler, teacher_features, num_images=2, num_views=1)), 2)
    assert "error of views" in table
    assert "larger" not in table


def test_existing_output_is_kept_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "upsampler").mkdir()
    monkeypatch.setattr(upsampling, "teacher_of_recipe", None)
    settings = UpsamplerSettings(teacher="t", output=tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"`output` .*upsampler"):  # somebody else's
        train_upsampler(settings, small_recipe("t"))
    (tmp_path / RUN_FILE).write_text("radio upsampler")
    with pytest.raises(ValueError, match="exists already"):
        train_upsampler(settings.replace(overwrite=False), small_recipe("t"))


def _recipe(data=None, **teacher):
    entry = {"name": "t", "kind": "tiny_upsampling:PatternTeacher", **teacher}
    return small_recipe(teachers=[entry], data={"source": "s", **(data or {})})


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The settings of a run that was stopped after its training, while a figure was drawn."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(upsampling, "open_images", lambda data, size, num_images, split: Blocks(4, size))
    fast = {"num_steps": 2, "batch_size": 2, "views": 1}
    settings = UpsamplerSettings(teacher="t", output=tmp_path, device="cpu", **fast)
    with monkeypatch.context() as patch:
        patch.setattr(upsampling, "draw", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_upsampler(settings, _recipe())
    return settings


def test_a_run_that_was_stopped_while_it_was_measured_goes_on(stopped, monkeypatch):
    weights = stopped.output / "upsampler" / "model.safetensors"
    trained = weights.read_bytes()
    monkeypatch.setattr(upsampling.UpsamplerTrainer, "train_step", None)
    again = stopped.replace(recipe="the_same", changes=["data.seed=0"])  # the same recipe in other words
    assert "error of views" in train_upsampler(again, _recipe())
    assert weights.read_bytes() == trained
    names = ["features.png", "measurements.json", RUN_FILE, "upsampler"]
    assert sorted(path.name for path in Path(stopped.output).iterdir()) == names
    with pytest.raises(ValueError, match="exists already"):
        train_upsampler(stopped, _recipe())


def test_a_run_that_was_stopped_does_not_go_on_with_another_recipe(stopped, monkeypatch):
    with pytest.raises(ValueError, match=r"\(data.seed: 0 -> 1\)"):
        train_upsampler(stopped, _recipe({"seed": 1}))
    with pytest.raises(ValueError, match=r"\(teacher.dtype: float32 -> bfloat16\)"):
        train_upsampler(stopped, _recipe(dtype="bfloat16"))
    monkeypatch.setattr(Blocks, "fingerprint", lambda images: "others")
    with pytest.raises(ValueError, match=r"\(images: blocks -> others\)"):
        train_upsampler(stopped, _recipe({"num_workers": 5}))


FAST = ["num_steps=8", "learning_rate=0.01", "batch_size=2", "views=2"]
SEMANTIC = "{name: semantic, kind: tiny, options: {summary_dim: 10, feature_dim: 12}}"
TEACHERS = f"teachers=[{SEMANTIC}, {{name: segmenter, kind: pattern}}]"


@pytest.fixture
def train(recipe_file, tiny_world, monkeypatch, tmp_path):
    """Return a function that runs the command on images in a folder."""
    monkeypatch.setitem(registry.TEACHER_KINDS, "pattern", PatternTeacher)
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(torch.randint(0, 256, (20, 80, 80, 3), dtype=torch.uint8)):
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number}.png")
    words = ["--recipe", recipe_file, "--output", str(tmp_path / "run"), *FAST]
    words += ["device=cpu", f"data.source={tmp_path / 'images'}", "data.num_images=null", TEACHERS]
    return lambda *more, teacher="segmenter": main([teacher, *words, *more])


def test_from_the_command_into_a_recipe(train, recipe_file, tmp_path, capsys):
    assert train() == 0, capsys.readouterr().err
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["features.png", "measurements.json", "run.txt", "upsampler"]
    assert list(json.loads((run / "measurements.json").read_text())["summary"]) == list(METHODS)
    assert f"teachers.segmenter.upsampler={run / 'upsampler'}" in capsys.readouterr().out
    assert train() == 1
    assert "exists already" in capsys.readouterr().err
    assert train("overwrite=true", teacher="segmnter") == 1
    assert "Did you mean 'segmenter'" in capsys.readouterr().err
    assert (run / "upsampler").is_dir()

    # 48 px are 3 patches of the student, 64 px 4, as many as the teacher has; 128 px are twice as many.
    changes = [TEACHERS, "teachers.segmenter.run_mode=fixed", "partitions.low.sizes_px=[128]", "schedule.num_steps=2"]
    changes += ["standardization={calibration_steps: 1, estimation_steps: 1}", "schedule.warmup_steps=0"]
    folders = {"featsharp": str(run / "upsampler"), "tiles": "null", "bilinear": "null"}
    ways = {
        how: [*changes, f"teachers.segmenter.upsample={how}", f"teachers.segmenter.upsampler={folder}"]
        for how, folder in folders.items()
    }
    teachers = {how: registry.teacher_of_recipe(load_recipe(recipe_file, way).teachers[1]) for how, way in ways.items()}
    assert weights_fingerprint(teachers["featsharp"]) != weights_fingerprint(teachers["tiles"])  # a cache notices
    images = torch.rand(2, 3, 128, 128)
    maps = {how: teacher.extract_features(images).features for how, teacher in teachers.items()}
    for how in ("tiles", "bilinear"):
        assert (maps["featsharp"] - maps[how]).abs().mean() > 0.01
    assert distil(recipe_file, str(tmp_path / "distilled"), *ways["featsharp"]) is not None


def test_a_device_that_is_not_there_is_refused(train, capsys):
    assert train("device=x=") == 1
    assert "error: `device` " in capsys.readouterr().err


def test_wrong_upsamplers_are_refused(train, recipe_file, tmp_path):
    assert train() == 0
    fixed = [TEACHERS, "teachers.segmenter.run_mode=fixed"]
    with pytest.raises(RecipeError, match=r"`teachers.segmenter.upsampler`"):
        load_recipe(recipe_file, [*fixed, "teachers.segmenter.upsample=featsharp"])
    for folder, changes, message in (
        ("nowhere", [], "Teacher 'segmenter': `upsampler`"),
        ("run/upsampler", ["teachers.segmenter.input_size_px=64"], "Teacher 'segmenter': .*`input_size_px` 64"),
        ("run/upsampler", ["teachers.segmenter.options={feature_dim: 7}"], "'segmenter': .*(feature_dim|options)"),
        ("run/upsampler", ["teachers.segmenter.run_mode=native"], "`run_mode`"),
    ):
        sharp = f"teachers.segmenter={{upsample: featsharp, upsampler: {tmp_path / folder}}}"
        with pytest.raises(ValueError, match=message):
            registry.teacher_of_recipe(load_recipe(recipe_file, [*fixed, sharp, *changes]).teachers[1])


def test_data_without_held_out_images_are_not_measured(monkeypatch):
    def refuse(*args):
        raise ValueError("`data.source` holds nothing out.")

    monkeypatch.setattr(upsampling, "open_images", refuse)
    assert upsampling._held_out_images(small_recipe("t"), 32) is None
