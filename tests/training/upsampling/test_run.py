from pathlib import Path

import pytest
from small_recipes import small_recipe
from tiny_upsampling import Blocks, tiny_answers

from training.recipe import Recipe, RecipeError
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


def test_memory_of_the_answers_is_told_before_the_training():
    answers = tiny_answers()  # 16 cells of 6 channels in two bytes
    said = "The answers of 't' to 4,000 images take 6.91 MB"
    assert run._forecast(UpsamplerSettings(teacher="t"), answers, 4000) == f"{said} of memory."
    line = run._forecast(UpsamplerSettings(teacher="t", memory_gb=0.001), answers, 4000)
    assert line.startswith(f"{said}: `memory_gb`, 0.001, keeps 14% of them, and the others are computed at each use.")


def _recipe(data: dict | None = None, **teacher: str) -> Recipe:
    entry = {"name": "t", "kind": "tiny_upsampling:PatternTeacher", **teacher}
    return small_recipe(teachers=[entry], data={"source": "s", **(data or {})})


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> UpsamplerSettings:
    """The settings of a run that was stopped after its training, while a picture was drawn."""
    monkeypatch.setattr(run, "open_images", lambda data, size, num_images, split: Blocks(4, size))
    fast = {"num_steps": 2, "batch_size": 2, "views": 1, "num_views": 1, "width": 16, "measured_images": 2}
    settings = UpsamplerSettings(teacher="t", output=tmp_path, device="cpu", **fast)
    with monkeypatch.context() as patch:
        patch.setattr(run, "draw", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.train_upsampler(settings, _recipe())
    return settings


def test_a_run_that_was_stopped_while_it_was_measured_goes_on(stopped, monkeypatch):
    weights = stopped.output / "upsampler" / "model.safetensors"
    trained = weights.read_bytes()
    monkeypatch.setattr(run.UpsamplerTrainer, "train_step", None)
    again = stopped.replace(recipe="the_same", changes=["data.seed=0"])  # said in other words
    assert "error of views" in run.train_upsampler(again, _recipe())
    assert weights.read_bytes() == trained
    names = ["features.png", "measurements.json", "upsampler"]
    assert sorted(path.name for path in Path(stopped.output).iterdir()) == names
    with pytest.raises(ValueError, match="exists already"):
        run.train_upsampler(stopped, _recipe())


def test_a_run_that_was_stopped_does_not_go_on_with_another_recipe(stopped, monkeypatch):
    with pytest.raises(ValueError, match=r"training.pt' is of a run with other settings \(data.seed: 0 -> 1\)\. Go on"):
        run.train_upsampler(stopped, _recipe({"seed": 1}))
    with pytest.raises(ValueError, match=r"\(teacher.precision: float32 -> bfloat16\)"):
        run.train_upsampler(stopped, _recipe(precision="bfloat16"))
    monkeypatch.setattr(Blocks, "fingerprint", lambda images: "others")
    with pytest.raises(ValueError, match=r"\(images: blocks -> others\)"):
        run.train_upsampler(stopped, _recipe({"num_workers": 5}))
