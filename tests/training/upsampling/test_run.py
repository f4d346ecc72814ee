import pytest
from small_recipes import small_recipe

from training.recipe import RecipeError
from training.upsampling import run
from training.upsampling.settings import UpsamplerSettings


def test_existing_output_is_kept_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "upsampler").mkdir()
    monkeypatch.setattr(run, "teacher_of_recipe", None)
    with pytest.raises(ValueError, match=r"exists already"):
        run.train_upsampler(UpsamplerSettings(teacher="t", output=tmp_path), small_recipe("t"))


def test_unknown_teacher_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"Unknown teacher 'u'|`teacher` must be"):
        run.train_upsampler(UpsamplerSettings(teacher="u", output=tmp_path), small_recipe("t"))


def test_data_that_hold_nothing_out_are_told(monkeypatch, capsys):
    def refuse(*args):
        raise ValueError("`data.source` holds nothing out.")

    monkeypatch.setattr(run, "open_images", refuse)
    assert run._held_out_images(UpsamplerSettings(teacher="t"), small_recipe("t"), 32) is None
    assert capsys.readouterr().out == "`measured_images` are not measured: `data.source` holds nothing out.\n"
