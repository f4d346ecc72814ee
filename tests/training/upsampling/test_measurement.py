import pytest
import torch
from tiny_upsampling import tiny_answers

from training.teachers.run_modes.featsharp import FeatSharp, UpsamplerConfig
from training.upsampling.measurement import METHODS, draw, measure, summarize, table_of


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
