import time

import pytest
import torch

from training.recipe import load_recipe
from training.student import build


@pytest.mark.parametrize(("is_faster", "expected"), [(True, ("bf16", "bfloat16")), (False, ("no", "float32"))])
def test_the_faster_precision_is_taken_for_student_and_teachers(is_faster, expected, monkeypatch):
    monkeypatch.setattr(build, "is_bfloat16_faster", lambda: is_faster)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    recipe = build.in_faster_precision(load_recipe("demo"))
    assert (recipe.mixed_precision, *{entry.precision for entry in recipe.teachers}) == expected


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_both_precisions_are_timed_on_one_layer(slow, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def linear(hidden, weight):
        assert hidden.dtype == weight.dtype
        now[0] += 2.0 if hidden.dtype == slow else 1.0

    monkeypatch.setattr(build.F, "linear", linear)
    assert build.is_bfloat16_faster() == (slow == torch.float32)
