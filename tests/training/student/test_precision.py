import pytest
import torch

from training.recipe import load_recipe
from training.student import precision


@pytest.mark.parametrize(("is_faster", "expected"), [(True, ("bf16", "bfloat16")), (False, ("no", "float32"))])
def test_the_faster_precision_is_taken_for_student_and_teachers(is_faster, expected, monkeypatch):
    monkeypatch.setattr(precision, "is_bfloat16_faster", lambda: is_faster)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    recipe = precision.in_faster_precision(load_recipe("demo"))
    assert (recipe.mixed_precision, *{entry.precision for entry in recipe.teachers}) == expected


def test_precision_is_timed_on_this_machine(monkeypatch):
    assert isinstance(precision.is_bfloat16_faster(), bool)
    monkeypatch.setattr(precision, "_linear_seconds", {torch.float32: 2.0, torch.bfloat16: 1.0}.get)
    assert precision.is_bfloat16_faster()
