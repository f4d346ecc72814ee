"""A fault on one of two ranks ends the run with a line that names it, or does no harm; the same command goes on.

`test_trainer.py` and `test_signals.py` have the faults of a single process.
"""

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
import tiny_distillation as tiny
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from safetensors.torch import save
from torch import Tensor
from two_processes import choose_sharding, let_accelerate_shard_on_cpus, log_file, ranks_at_work, read_logs

from modeling_radio.data.training_images import build_training_images
from modeling_radio.training.distill import main
from modeling_radio.training.distillation import checkpoints, inputs


pytestmark = pytest.mark.tour

STEP = 4
"""In which faults happen; the last checkpoint is that of step 3."""
SECONDS = 120
LOST = rf"Rank 0 waited in vain for rank 1 \(host .*, process \d+; after step {STEP}, in "
STREAMED = "data={source: 'store://FOLDER/part-{00..01}.tar', num_images: null, streaming: true, shuffle_buffer: 4}"


class StoreFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.count_call()
        with open(f"/{self.path.lstrip('/')}", "rb") as file:
            file.seek(start)
            return file.read(end - start)


class Store(AbstractFileSystem):
    """Files of this machine, at `store://`, as a store that may fail in every tenth call."""

    protocol = "store"
    failure: Exception | None = None
    num_calls = num_failures = 0

    def count_call(self) -> None:
        Store.num_calls += 1
        if Store.failure is not None and Store.num_calls % 10 == 0:
            Store.num_failures += 1
            raise Store.failure

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": os.path.getsize(f"/{path.lstrip('/')}"), "type": "file"}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> StoreFile:
        self.count_call()
        return StoreFile(self, path, mode, block_size=1024, cache_type="readahead")


def at_step(patch: pytest.MonkeyPatch, fault: Callable[[], object]) -> None:
    """Let something happen when a step begins."""
    set_rate = tiny.trainer.Distiller._set_learning_rate

    def begin_step(distiller: tiny.trainer.Distiller) -> None:
        if distiller.step == STEP:
            fault()
        set_rate(distiller)

    patch.setattr(tiny.trainer.Distiller, "_set_learning_rate", begin_step)


def die(patch: pytest.MonkeyPatch) -> None:
    at_step(patch, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang(patch: pytest.MonkeyPatch) -> None:
    at_step(patch, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    def write_to_full_disk(tensors: dict[str, Tensor], path: Path) -> None:
        Path("/dev/full").write_bytes(save(tensors))

    at_step(patch, lambda: patch.setattr(checkpoints, "save_file", write_to_full_disk))


def lose_store(patch: pytest.MonkeyPatch) -> None:
    at_step(patch, lambda: setattr(Store, "failure", OSError(errno.EIO, os.strerror(errno.EIO))))


def disturb_store(patch: pytest.MonkeyPatch) -> None:
    """Fail as a connection that is slow: `datasets` tries again."""
    at_step(patch, lambda: setattr(Store, "failure", TimeoutError("the store is busy")))


def change_clock(patch: pytest.MonkeyPatch) -> None:
    """Set the clock a day forward, and later two days back."""
    clock, began = time.time, time.monotonic()
    at_step(patch, lambda: patch.setattr(time, "time", lambda: clock() - 86400))
    patch.setattr(time, "time", lambda: clock() + 86400 * (time.monotonic() > began))


def distil(output: str, recipe: str, changes: tuple[str, ...], use_fsdp: bool, fault: Callable | None) -> None:
    """Run by each of two processes; the second has the fault."""
    patch = pytest.MonkeyPatch()
    tiny.install_tiny_world(patch)
    tiny.leave_progress_undrawn(patch)
    if changes:
        patch.setattr(inputs, "build_training_images", build_training_images)
    let_accelerate_shard_on_cpus(patch)
    choose_sharding(patch, use_fsdp=use_fsdp)
    if fault is hang:  # otherwise no rank waits for one that is there, however busy the machine is
        patch.setattr(tiny.trainer, "STEP_TIMEOUT", timedelta(seconds=5))
    rank = os.environ["RANK"]
    if fault is not None and rank == "1":
        fault(patch)
    status = main(["--recipe", recipe, "--output", output, *changes])
    Path(f"failures-{rank}").write_text(str(Store.num_failures))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the group cannot be left in an orderly way


def run(folder: Path, *arguments: Any) -> list[int | None]:
    """Return the exit status of both ranks, once they have ended; None for one that hangs."""
    *_, fault = arguments
    with ranks_at_work(lambda: distil(*arguments), folder, 2) as ranks:
        ranks[0].join(SECONDS)
        ranks[1].join(0 if fault is hang else SECONDS)
        return [process.exitcode for process in ranks]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
    fsspec.register_implementation("store", Store, clobber=True)
    (tmp_path / "tiny.yaml").write_text(tiny.RECIPE)
    return "tiny.yaml"


def check(folder: Path, *arguments: Any) -> None:
    """Go on without the fault, and compare with a run that had none."""
    for output in ("run", "undisturbed"):
        assert run(folder, output, *arguments, None) == [0, 0], read_logs(folder)
    tiny.assert_same_tensors(tiny.last_state("run"), tiny.last_state("undisturbed"))


@pytest.mark.parametrize(
    ("fault", "use_fsdp", "statuses", "lines"),
    [
        (die, False, [1, -signal.SIGKILL], [LOST, None]),
        (hang, False, [1, None], [LOST, None]),
        (fill_disk, True, [1, 1], [r"Cannot write 'run/checkpoints/step_00000006': No space left on device\."] * 2),
    ],
)
def test_a_rank_that_fails_ends_the_run(
    fault: Callable, use_fsdp: bool, statuses: list[int | None], lines: list[str | None], recipe: str, tmp_path: Path
) -> None:
    assert run(tmp_path, "run", recipe, (), use_fsdp, fault) == statuses, read_logs(tmp_path)
    for rank, line in enumerate(lines):
        if line is not None:
            assert re.match(f"radio distill: error: {line}", log_file(tmp_path, rank).read_text().splitlines()[-1])
    assert [path.name for path in Path("run/checkpoints").glob("step_*")] == ["step_00000003"]
    check(tmp_path, recipe, (), use_fsdp)


def test_a_clock_that_jumps_does_no_harm(recipe: str, tmp_path: Path) -> None:
    assert run(tmp_path, "run", recipe, (), False, change_clock) == [0, 0], read_logs(tmp_path)
    check(tmp_path, recipe, (), False)


@pytest.mark.parametrize("fault", [lose_store, disturb_store])
def test_a_store_that_fails_ends_the_run_or_is_asked_again(
    fault: Callable, recipe: str, write_source: Callable[..., str], tmp_path: Path
) -> None:
    changes = (STREAMED.replace("FOLDER", write_source("webdataset", 12)),)
    found = run(tmp_path, "run", recipe, changes, False, fault)
    assert int(Path("failures-1").read_text()) > 0
    if fault is disturb_store:
        assert found == [0, 0], read_logs(tmp_path)
    else:
        assert found == [1, 1], read_logs(tmp_path)
        line = log_file(tmp_path, 1).read_text().splitlines()[-1]
        assert line.startswith("radio distill: error: Data source 'store://")
        assert "Input/output error" in line
        assert "rank 1 (host " in log_file(tmp_path, 0).read_text().splitlines()[-1]
        assert Path("run/checkpoints/step_00000003").is_dir()
    check(tmp_path, recipe, changes, False)
