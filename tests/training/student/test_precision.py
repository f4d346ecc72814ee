import time

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


@pytest.mark.parametrize(("float32_seconds", "bfloat16_seconds"), [(0.02, 0.001), (0.001, 0.02)])
def test_both_precisions_are_timed(float32_seconds, bfloat16_seconds, monkeypatch):
    seconds = {torch.float32: float32_seconds, torch.bfloat16: bfloat16_seconds}

    def linear(hidden, weight):
        assert hidden.dtype == weight.dtype
        time.sleep(seconds[weight.dtype])

    monkeypatch.setattr("torch.nn.functional.linear", linear)
    assert precision.is_bfloat16_faster() == (bfloat16_seconds < float32_seconds)
