"""FeatSharp's training, on a random teacher with a pattern of positions and images with sharp edges."""

from pathlib import Path

import pytest
import torch
from small_recipes import small_recipe
from tiny_upsampling import GRID, SIDE, Blocks, tiny_answers, tiny_trainer
from torch.nn import functional as F

from core.checked_tensors import DamagedFileError
from core.files import RUN_FILE
from core.interruption import TrainingDivergedError
from core.settings import SettingsError
from training import upsampling
from training.recipe import Recipe, RecipeError
from training.teachers.featsharp import FeatSharp, UpsamplerConfig, cut_tiles
from training.upsampling import (
    METHODS,
    STATE_FILE,
    WHOLE,
    Answers,
    UpsamplerSettings,
    View,
    ViewReader,
    draw,
    draw_view,
    measure,
    summarize,
    table_of,
    view_of_image,
    view_of_map,
)


def test_folder_follows_from_the_teacher():
    assert UpsamplerSettings(teacher="clip").folder() == Path("runs/upsamplers/clip")
    assert UpsamplerSettings(teacher="clip", output="here").folder() == Path("here")


def test_a_factor_of_one_is_refused():
    with pytest.raises(SettingsError, match=r"`factor` must be .*got 1"):
        UpsamplerSettings(teacher="clip", factor=1)


def test_more_views_in_a_step_than_there_are_are_refused():
    with pytest.raises(SettingsError, match="`views` must be at most `num_views`, 4, got 8"):
        UpsamplerSettings(teacher="clip", views=8)


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


def test_views_may_be_as_small_as_tiles():
    views = [draw_view(4096, 0, number, largest=0.5) for number in range(8)]
    assert {view.side for view in views} == {0.5}
    assert len(set(views)) == 8


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_map_is_seen_where_the_image_is(is_mirrored):
    image = F.interpolate(torch.rand(1, 3, 5, 5), 64, mode="bicubic").clamp(0, 1)
    view = View(8 / 64, 16 / 64, 40 / 64, is_mirrored)
    seen = F.avg_pool2d(view_of_map(image, [view], 32), 4)
    pixels = F.interpolate(view_of_image(image, view, 40), 8, mode="area")
    torch.testing.assert_close(seen, pixels, atol=0.01, rtol=0)
    other = view._replace(is_mirrored=not is_mirrored)
    assert (F.avg_pool2d(view_of_map(image, [other], 32), 4) - pixels).abs().mean() > 0.02


@torch.no_grad()
def test_a_new_reader_takes_the_mean_and_a_trained_one_chooses():
    maps = torch.randn(2, 5, 16, 16)
    reader = ViewReader(5)
    torch.testing.assert_close(reader(maps, [WHOLE, WHOLE], 4), F.avg_pool2d(view_of_map(maps, [WHOLE] * 2, 16), 4))
    reader.place[0] = 30  # the first of each cell's samples
    torch.testing.assert_close(reader(maps, [WHOLE, WHOLE], 4), maps[:, :, ::4, ::4], atol=1e-4, rtol=0)


def test_an_example_has_the_teachers_answers():
    answers = tiny_answers()
    example = answers.example([3, 5], [2, 1])
    assert example.images.shape == (2, 3, 2 * SIDE, 2 * SIDE)
    assert example.tiles.shape == (2, 6, 2 * GRID, 2 * GRID)
    assert example.targets.shape == (3, 2, 6, GRID, GRID)
    assert [len(views) for views in example.views] == [2, 2, 2]
    assert example.views[0] == [WHOLE, WHOLE]
    assert torch.equal(example.targets[0], example.whole)
    pixels = answers.pixels(5)
    corner = answers.run(cut_tiles(pixels, 2, 2)[3:])[0]
    torch.testing.assert_close(example.tiles[1, :, GRID:, GRID:], corner, rtol=2**-8, atol=0)
    assert answers.larger(5).shape == example.tiles[1:].shape


def test_the_teacher_runs_once_for_each_view():
    answers = tiny_answers()
    first = answers.example([0, 1], [1])
    answers.run = None
    assert torch.equal(answers.example([0, 1], [1]).targets, first.targets)


def test_answers_without_room_are_computed_again_and_are_the_same():
    answers, everything = tiny_answers(), tiny_answers()
    of_map = answers.num_bytes(1, 1) / 6  # the whole, a view and four tiles
    assert of_map == 2 * 6 * GRID**2
    answers = Answers(answers.teacher, answers.images, 2, seed=0, memory_gb=2 * of_map / 1e9)
    wanted = everything.example([0, 1], [1])
    for _ in range(2):
        for found, expected in zip(answers.example([0, 1], [1]), wanted, strict=True):
            assert found == expected if isinstance(found, list) else torch.equal(found, expected)
    answers.run = None
    answers.of_view(0, 0)
    answers.of_view(1, 0)
    with pytest.raises(TypeError):
        answers.of_view(0, 1)


def test_all_answers_take_what_was_forecast():
    answers = tiny_answers(num_images=2)
    answers.example([0, 1], [1, 2, 3])
    assert answers.num_bytes(2, 3) == sum(kept.nbytes for kept in answers._kept.values())


def test_training_lowers_the_loss_and_finds_the_pattern(tmp_path):
    trainer = tiny_trainer(tmp_path)
    losses = trainer.run(tmp_path)
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    truth = trainer.answers.teacher.pattern
    truth = (truth - truth.mean((1, 2), keepdim=True)).flatten()
    found = trainer.upsampler.centered_pattern().detach().flatten() * trainer.upsampler.scale
    assert torch.cosine_similarity(truth, found, dim=0) > 0.75


def test_views_of_other_images_agree_better_and_the_map_is_another(tmp_path):
    trainer = tiny_trainer(tmp_path, num_images=64)
    trainer.run(tmp_path)
    answers = tiny_answers(num_images=80)
    answers.images.images = answers.images.images[64:]  # those before are the ones that it was trained on
    example = answers.example([12, 13], [1, 2])
    with torch.no_grad():
        bilinear, _, tiles, sharp = (method(trainer.upsampler, example) for method in METHODS.values())
    for other in (bilinear, tiles):
        assert (sharp - other).square().mean() > 0.05 * other.var()
    summary = summarize(measure(trainer.upsampler, answers, num_images=16, num_views=3))
    for other in ("bilinear", "tiles"):
        assert summary["FeatSharp"]["to_larger"] < summary[other]["to_larger"]
    for other in summary.keys() - {"FeatSharp"}:
        assert summary["FeatSharp"]["views"] < 0.95 * summary[other]["views"]
        assert summary[other]["worse_on_views"] > 12


@pytest.mark.parametrize("largest", [1.0, 0.5])
def test_small_views_leave_out_what_the_teacher_says_of_the_whole(largest, tmp_path):
    trainer = tiny_trainer(tmp_path, largest_view=largest)
    trainer.fit_statistics()
    example = trainer.answers.example([0, 1], [1, 2])
    assert all((view.side == 0.5) == (largest == 0.5) for views in example.views[1:] for view in views)
    other = example._replace(targets=torch.cat([example.targets[:1] + 1, example.targets[1:]]))
    assert (trainer.loss(other) == trainer.loss(example)) == (largest == 0.5)


def test_a_run_that_was_stopped_ends_the_same(tmp_path):
    whole, first = (tiny_trainer(tmp_path / name, num_steps=10) for name in ("whole", "first"))
    whole.run(tmp_path / "whole")
    first.fit_statistics()
    for _ in range(6):
        first.train_step()
    first.save(tmp_path / "first" / STATE_FILE)
    second = tiny_trainer(tmp_path / "first", num_steps=10)
    assert len(second.run(tmp_path / "first")) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_state_of_other_settings_is_refused(tmp_path):
    tiny_trainer(tmp_path, num_steps=2).run(tmp_path)
    other = tiny_trainer(tmp_path, num_steps=2, learning_rate=1e-3)
    with pytest.raises(
        ValueError, match=r"training.safetensors' is of a run with other settings \(learning_rate: 0.01 -> 0.001\)"
    ):
        other.run(tmp_path)
    assert tiny_trainer(tmp_path, num_steps=2, save_every=7, memory_gb=1).run(tmp_path) == []


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.upsampler.scale.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match=r"loss of step 0 is not finite. Lower `learning_rate`, 0.01"):
        trainer.train_step()


def test_a_gradient_that_is_not_finite_ends_the_run_and_moves_no_weight(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.fit_statistics()
    trainer.upsampler.pattern.register_hook(lambda gradient: gradient / 0)
    before = {name: value.clone() for name, value in trainer.state_dict().items()}
    with pytest.raises(TrainingDivergedError, match=r"gradient of step 0 is not finite"):
        trainer.train_step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.state_dict().items())


@pytest.fixture
def upsampler() -> FeatSharp:
    torch.manual_seed(0)
    return FeatSharp(UpsamplerConfig(kind="pattern", feature_dim=6, input_size_px=32, grid=4, width=16, num_heads=2))


def test_errors_are_shares_of_the_variance(upsampler, monkeypatch):
    answers = tiny_answers(num_images=3)
    monkeypatch.setitem(METHODS, "tiles", lambda *_: torch.zeros(1, 6, 8, 8))  # the mean that is subtracted
    summary = summarize(measure(upsampler, answers, num_images=9, num_views=2))
    assert summary["tiles"]["to_larger"] == pytest.approx(1)
    assert summary["tiles"]["views"] == pytest.approx(1)
    monkeypatch.setitem(METHODS, "tiles", lambda *_: answers.larger(0))
    assert summarize(measure(upsampler, answers, num_images=1, num_views=2))["tiles"]["to_larger"] == 0


def test_the_error_to_a_larger_run_has_a_coarse_part_and_detail(upsampler, monkeypatch):
    answers = tiny_answers(num_images=2)
    larger = [answers.larger(index) for index in range(2)]
    wrong_everywhere = iter([each + 1 for each in larger])
    monkeypatch.setitem(METHODS, "tiles", lambda *_: next(wrong_everywhere))
    checkered = torch.ones(8, 8).where(torch.arange(8)[:, None] % 2 == torch.arange(8) % 2, -1)
    wrong_within_cells = iter([each + checkered for each in larger])
    monkeypatch.setitem(METHODS, "tiles alone", lambda *_: next(wrong_within_cells))
    summary = summarize(measure(upsampler, answers, num_images=2, num_views=1))
    assert summary["tiles"]["detail"] == pytest.approx(0, abs=1e-9)
    assert summary["tiles alone"]["coarse"] == pytest.approx(0, abs=1e-9)
    assert min(summary["tiles"]["coarse"], summary["tiles alone"]["detail"]) > 0.01


def test_teacher_of_one_size_has_the_error_of_views_only(upsampler):
    answers = tiny_answers(num_images=2)
    answers.teacher.runs_at_any_size = False
    summary = summarize(measure(upsampler, answers, num_images=2, num_views=1))
    assert "error of views" in table_of(summary, 2)
    assert "larger" not in table_of(summary, 2)


def test_a_picture_is_drawn(upsampler, tmp_path):
    draw(upsampler, tiny_answers(num_images=2), 2, tmp_path / "features.png", "caption")
    assert (tmp_path / "features.png").stat().st_size > 5000


def test_existing_output_is_kept_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "upsampler").mkdir()
    monkeypatch.setattr(upsampling, "teacher_of_recipe", None)
    settings = UpsamplerSettings(teacher="t", output=tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"`output` .*which holds upsampler\."):  # somebody else's
        upsampling.train_upsampler(settings, small_recipe("t"))
    (tmp_path / RUN_FILE).write_text("training.upsampling")
    with pytest.raises(ValueError, match=r"exists already"):
        upsampling.train_upsampler(settings.replace(overwrite=False), small_recipe("t"))


def test_unknown_teacher_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"Unknown teacher 'u'|`teacher` must be"):
        upsampling.train_upsampler(UpsamplerSettings(teacher="u", output=tmp_path), small_recipe("t"))


def test_data_that_hold_nothing_out_are_told(monkeypatch, capsys):
    def refuse(*args):
        raise ValueError("`data.source` holds nothing out.")

    monkeypatch.setattr(upsampling, "open_images", refuse)
    assert upsampling._held_out_images(UpsamplerSettings(teacher="t"), small_recipe("t"), 32) is None
    assert capsys.readouterr().out == "`measured_images` are not measured: `data.source` holds nothing out.\n"


def test_memory_of_the_answers_is_told_before_the_training():
    answers = tiny_answers()  # 16 cells of 6 channels in two bytes
    said = "The answers of 't' to 4,000 images take 6.91 MB"
    assert upsampling._forecast(UpsamplerSettings(teacher="t"), answers, 4000) == f"{said} of memory."
    line = upsampling._forecast(UpsamplerSettings(teacher="t", memory_gb=0.001), answers, 4000)
    assert line.startswith(f"{said}: `memory_gb`, 0.001, keeps 14% of them, and the others are computed at each use.")


def _recipe(data: dict | None = None, **teacher: str) -> Recipe:
    entry = {"name": "t", "kind": "tiny_upsampling:PatternTeacher", **teacher}
    return small_recipe(teachers=[entry], data={"source": "s", **(data or {})})


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> UpsamplerSettings:
    """The settings of a run that was stopped after its training, while a picture was drawn."""
    monkeypatch.setattr(upsampling, "open_images", lambda data, size, num_images, split: Blocks(4, size))
    fast = {"num_steps": 2, "batch_size": 2, "views": 1, "num_views": 1, "width": 16, "measured_images": 2}
    settings = UpsamplerSettings(teacher="t", output=tmp_path, device="cpu", **fast)
    with monkeypatch.context() as patch:
        patch.setattr(upsampling, "draw", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            upsampling.train_upsampler(settings, _recipe())
    return settings


def test_a_run_that_was_stopped_while_it_was_measured_goes_on(stopped, monkeypatch):
    weights = stopped.output / "upsampler" / "model.safetensors"
    trained = weights.read_bytes()
    monkeypatch.setattr(upsampling.UpsamplerTrainer, "train_step", None)
    again = stopped.replace(recipe="the_same", changes=["data.seed=0"])  # said in other words
    assert "error of views" in upsampling.train_upsampler(again, _recipe())
    assert weights.read_bytes() == trained
    names = ["features.png", "measurements.json", RUN_FILE, "upsampler"]
    assert sorted(path.name for path in Path(stopped.output).iterdir()) == names
    with pytest.raises(ValueError, match="exists already"):
        upsampling.train_upsampler(stopped, _recipe())


def test_a_run_that_was_stopped_does_not_go_on_with_another_recipe(stopped, monkeypatch):
    with pytest.raises(
        ValueError, match=r"training.safetensors' is of a run with other settings \(data.seed: 0 -> 1\)\. Go on"
    ):
        upsampling.train_upsampler(stopped, _recipe({"seed": 1}))
    with pytest.raises(ValueError, match=r"\(teacher.precision: float32 -> bfloat16\)"):
        upsampling.train_upsampler(stopped, _recipe(precision="bfloat16"))
    monkeypatch.setattr(Blocks, "fingerprint", lambda images: "others")
    with pytest.raises(ValueError, match=r"\(images: blocks -> others\)"):
        upsampling.train_upsampler(stopped, _recipe({"num_workers": 5}))


def test_a_damaged_state_is_refused_by_name(tmp_path):
    trainer = tiny_trainer(tmp_path, num_steps=2)
    trainer.run(tmp_path)
    path = tmp_path / STATE_FILE
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for content in (flipped, whole[:-100], b""):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError) as error:
            tiny_trainer(tmp_path, num_steps=2).run(tmp_path)
        assert error.value.path == path
