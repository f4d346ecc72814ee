"""Tuning that is killed again and again ends as one that was left alone, and leaves nothing behind."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from killing import is_killed
from safetensors.torch import load_file
from tiny_distillation import assert_same_tensors
from tiny_tuning import run_settings

from modeling_radio.core.files import TEMPORARY_PREFIX
from modeling_radio.core.manifests import MANIFEST
from modeling_radio.tuning.run import FINAL, MERGED, SETTINGS, FinetuningRun


pytestmark = [
    pytest.mark.usefixtures("one_thread", "own_datasets_cache", "one_figure_image"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


METHODS = {"lora": {"tune": "lora", "lora_dropout": 0.2, "merge": True}, "full": {"tune": "full", "layer_decay": 0.7}}
WEIGHTS = {
    "lora": (f"{FINAL}/adapter_model.safetensors", f"{MERGED}/model.safetensors"),
    "full": (f"{FINAL}/model.safetensors",),
}

# An entry of the folder of a run, and how many changes of files follow it at most before a kill.
BEGUN = (SETTINGS, 10)
CHECKPOINT = (f"checkpoint-*/{MANIFEST}", 10)
HALF_CHECKPOINT = ("checkpoint-*", 5)
HALF_FINAL, HALF_MERGED = ((f"{TEMPORARY_PREFIX}{name}-*", 10) for name in (FINAL, MERGED))


def tune(base: Path, data: Path, output: Path, method: str, steps: int) -> None:
    """Tune with all that draws random numbers; a checkpoint after each step."""
    options = {"evaluate_every": 1, "batch_size": 1, "config": {"drop_path_rate": 0.2}, **METHODS[method]}
    FinetuningRun(run_settings(base, data, output, steps=steps, **options)).run()


def kill_and_finish(
    base: Path, data: Path, folder: Path, method: str, moments: Sequence[tuple[str, int]], *, steps: int, seed: int
) -> None:
    """Kill a run at some moments, let it finish and compare it with an undisturbed one."""
    killed, whole = folder / "killed", folder / "whole"
    draw = random.Random(seed)
    for pattern, most in moments:
        before = set(killed.glob(pattern))
        assert is_killed(
            lambda: tune(base, data, killed, method, steps),
            lambda pattern=pattern, before=before: bool(set(killed.glob(pattern)) - before),
            draw.randrange(most),
        ), f"the run ended before it was killed at {pattern}"
    tune(base, data, killed, method, steps)
    tune(base, data, whole, method, steps)
    for name in WEIGHTS[method]:
        assert_same_tensors(load_file(whole / name), load_file(killed / name))
    assert files(killed) == files(whole)


def files(output: Path) -> set[Path]:
    """Return what is in the folder of a run, but for TensorBoard's files, whose names have the time."""
    return {path.relative_to(output) for path in output.rglob("*") if "runs" not in path.relative_to(output).parts}


def test_one_kill(base, class_folders, tmp_path):
    kill_and_finish(base, class_folders, tmp_path, "lora", [CHECKPOINT], steps=3, seed=1)


@pytest.mark.tour
@pytest.mark.parametrize(
    ("method", "saving"), [("lora", [HALF_FINAL, HALF_MERGED, HALF_FINAL]), ("full", [HALF_FINAL] * 3)], ids=METHODS
)
def test_ten_kills(method, saving, base, class_folders, tmp_path):
    moments = [BEGUN, *[CHECKPOINT, HALF_CHECKPOINT] * 3, *saving]
    kill_and_finish(base, class_folders, tmp_path, method, moments, steps=20, seed=0)
