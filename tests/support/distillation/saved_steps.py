"""Checkpoints with a single small file, written as a run writes its own."""

from collections.abc import Callable
from pathlib import Path

from training.distillation.checkpoints import CheckpointWriter


def write_weights(path: Path) -> None:
    path.write_bytes(b"w")


def save(
    folder: Path, step: int, write: Callable[[Path], object] = write_weights, num_kept: int = 2, name: str = "weights"
) -> Path:
    """Write the checkpoint of a step to its end and return its folder."""
    writer = CheckpointWriter(folder, num_kept)
    writer.begin({"step": step}, {name: write})
    writer.finish()
    return folder / f"step_{step:08d}"
