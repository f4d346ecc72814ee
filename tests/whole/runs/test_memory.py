"""The memory of a run does not grow with its steps."""

import gc
from pathlib import Path

import pytest
import tiny_distillation as tiny

from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import load_recipe


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

MAX_GROWTH_MIB = 6
"""Our choice: a quarter of what would be added by keeping each step's images; 1 was measured."""


def resident_mib() -> float:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@pytest.mark.slow
def test_memory_is_flat_over_500_steps(recipe_file: str) -> None:
    """With several sizes, ViTDet windows, all losses, checkpoints; the first 100 steps fill what is kept for reuse."""
    settings = [
        *tiny.REGULARIZED,
        "schedule.num_steps=500",
        "checkpoints={every_steps: 50, keep: 2}",
        "partitions=[{name: low, sizes_px: [32, 48, 64], batch_size: 3, vitdet_windows: [1]}]",
        "logging.trackers=[tensorboard]",
    ]
    distiller = Distiller(load_recipe(recipe_file, settings), Path("run"))
    memory: dict[int, float] = {}
    train_step = distiller.train_step

    def measured(examples):
        if distiller.step % 100 == 0:
            memory[distiller.step] = resident_mib()
        return train_step(examples)

    distiller.train_step = measured
    distiller.run()
    assert len(memory) == 5
    assert memory[400] - memory[100] < MAX_GROWTH_MIB, memory
