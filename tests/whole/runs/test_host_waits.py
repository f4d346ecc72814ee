"""A step reads numbers from the device once: on a GPU Python waits there for all that was queued before."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_distillation as tiny
import torch
from folders import FOLDERS
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import load_recipe


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

ROOT = Path(tiny.trainer.__file__).parents[2]
OURS = tuple(f"{ROOT / name}/" for name in (*FOLDERS, "modeling_radio"))
READING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
"""Operators that give Python a number, or a shape that depends on numbers."""
READING_ALL = {Tensor.tolist, Tensor.numpy, Tensor.cpu}
"""Functions that do so without such an operator."""
ON_THE_CPU = {
    "/views/": "draws, from a generator on the CPU",
    "inputs_radio.py:warn_of_pixel_range": "looks at pixels only there",
    "layers_radio.py:_state": "of resized positions, which are kept only there",
    "layers_radio.py:__init__": "a pack's grids, which the trainer leaves there",
    "ema.py": "counts its updates there",
    "training/balancing/contrastive.py": "counts what banks have there",
}
NUM_STEPS, ESTIMATION_STEPS = 7, 5
ROLES = ["teachers.semantic.role=semantic", "teachers.segmenter.role=task"]


class Reads(TorchDispatchMode):
    """Counts where numbers of tensors are read, whatever device these are on: a CPU's stand for a GPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READING or (name.startswith("index") and _has_mask(args)):
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        """Count the function of ours that is at work, unless what it reads is on the CPU in any case."""
        frame = sys._getframe(1)
        while not frame.f_code.co_filename.startswith(OURS) or frame.f_code.co_name.startswith("<"):
            assert frame.f_back is not None
            frame = frame.f_back
        name = frame.f_code.co_name
        if not any(part in f"{frame.f_code.co_filename}:{name}" for part in ON_THE_CPU):
            self.places[name] += 1


class ReadsOfAll(TorchFunctionMode):
    """Adds what `Reads` cannot see."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in READING_ALL:
            self.reads.note()
        return func(*args, **(kwargs or {}))


def _has_mask(args: tuple) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


@pytest.mark.parametrize(
    ("views", "optimizer", "more"),
    [
        ("online", "lamb", ["student.gradient_checkpointing=true"]),
        pytest.param("cached", "adamw", ["optimizer.trunk_frozen_steps=3"], marks=pytest.mark.tour),
        pytest.param("online", "muon", ["damp={sigma: 0.1}"], marks=pytest.mark.tour),
        ("online", "lamb", [*tiny.PACKED, "partitions.low.accumulation_steps=2"]),
        ("online", "adamw", ["contrastive={weight: 0.1}", "balancing={method: adaptive}", *ROLES]),
    ],
)
def test_a_step_waits_once(
    recipe_file: str, views: str, optimizer: str, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To learn whether all that it computed is finite, and whether any rank is asked to stop."""
    monkeypatch.setattr("modeling_radio.training.targets.statistics.REFIT_EVERY_STEPS", 4)
    settings = [
        *tiny.REGULARIZED,
        "data.image_size_px=80",  # room for another window of the moving average
        f"schedule.num_steps={NUM_STEPS}",
        f"views.teachers={views}",
        f"optimizer.name={optimizer}",
        f"standardization.estimation_steps={ESTIMATION_STEPS}",
        "logging.every_steps=100",  # logged steps wait more often
        "partitions=[{name: low, sizes_px: [32, 48], batch_size: 3, accumulation_steps: 2, vitdet_windows: [1]}, "
        "{name: high, sizes_px: [64], batch_size: 2}]",
        *more,
    ]
    distiller = Distiller(load_recipe(recipe_file, settings), Path("run"))
    places: dict[int, Counter[str]] = {}
    train_step = distiller.train_step

    def watched(examples: Any) -> dict[str, Tensor]:
        with Reads() as reads, ReadsOfAll(reads):
            values = train_step(examples)
        places[distiller.step - 1] = reads.places
        return values

    distiller.train_step = watched
    distiller.run()
    refits = {1, 2, 4, ESTIMATION_STEPS}
    quiet = set(range(NUM_STEPS)) - refits
    assert {step: dict(places[step]) for step in quiet} == {step: {"any_rank": 1} for step in quiet}
    assert all(places[step]["refit"] == 2 for step in refits)  # one for each teacher, a few dozen times in a run
