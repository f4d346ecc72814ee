"""Tuning that is killed again and again ends as one that was left alone, and leaves nothing behind."""

import random
import signal
import time
from pathlib import Path

import pytest
from killing import run_until
from safetensors.torch import load_file
from tiny_distillation import assert_same_tensors
from tiny_tuning import run_settings
from tuning_fixtures import base, class_folders, one_picture, own_datasets_cache

from training.finetuning.checkpoints import sealed_checkpoints
from training.finetuning.run import FinetuningRun


__all__ = ["base", "class_folders", "one_picture", "own_datasets_cache"]

pytestmark = [
    pytest.mark.usefixtures("one_thread", "own_datasets_cache", "one_picture"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def tune(base: Path, data: Path, output: Path, steps: int) -> None:
    """Tune adapters with all that draws random numbers; a checkpoint after each step."""
    options = {"tune": "lora", "lora_dropout": 0.2, "evaluate_every": 1, "batch_size": 1, "merge": True}
    options |= {"config": {"drop_path_rate": 0.2}}
    FinetuningRun(run_settings(base, data, output, steps=steps, **options)).run()


def kill_and_finish(base: Path, data: Path, folder: Path, *, kills: int, steps: int, seed: int) -> None:
    """Kill a run at random moments, let it finish and compare it with an undisturbed one."""
    killed, whole = folder / "killed", folder / "whole"
    draw = random.Random(seed)
    for _ in range(kills):
        before = sealed_checkpoints(killed)[-1:]
        moment = None

        def is_time(before: list[Path] = before) -> bool:
            """Whether a random moment has passed since the session's first checkpoint."""
            nonlocal moment
            if moment is None and sealed_checkpoints(killed)[-1:] != before:
                moment = time.monotonic() + draw.uniform(0, 0.3)  # about the time between two checkpoints
            return moment is not None and time.monotonic() >= moment

        status = run_until(lambda: tune(base, data, killed, steps), is_time)
        assert status == signal.SIGKILL, "the run ended before its last kill"
    tune(base, data, killed, steps)
    tune(base, data, whole, steps)
    for name in ("final/adapter_model.safetensors", "merged/model.safetensors"):
        assert_same_tensors(load_file(whole / name), load_file(killed / name))
    assert files(killed) == files(whole)


def files(output: Path) -> set[Path]:
    """Return what is in the folder of a run, but for TensorBoard's files, whose names have the time."""
    return {path.relative_to(output) for path in output.rglob("*") if "runs" not in path.relative_to(output).parts}


def test_one_kill(base, class_folders, tmp_path):
    kill_and_finish(base, class_folders, tmp_path, kills=1, steps=3, seed=1)


@pytest.mark.slow
def test_ten_kills(base, class_folders, tmp_path):
    kill_and_finish(base, class_folders, tmp_path, kills=10, steps=40, seed=0)
