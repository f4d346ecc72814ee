"""Every command ends by SIGINT, SIGTERM and SIGUSR1, in each phase, within ten seconds, with its workers.

The larger numbers: `RADIO_SIGNALS=10 python -m pytest -m slow tests/whole/runs/test_signals.py`.
"""

import contextlib
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import phases
import pytest
from safetensors.torch import load_file
from tiny_distillation import assert_same_tensors, environment
from tiny_folders import model, pictures

from foundation.interruption import StopRequest


__all__ = ["model", "pictures"]

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""In which a command ends: the issue's."""
START_SECONDS = 120.0
NUM_SIGNALS = int(os.environ.get("RADIO_SIGNALS", "2"))
"""Of each command at random moments."""

PHASES = {
    "fetching": (),
    "building": (),
    "calibrating": ("data.num_workers=2",),
    "caching": ("views={teachers: cached, cache_dir: cache}", "data.num_workers=2"),
    "training": ("schedule.num_steps=100000", "data.num_workers=2"),
    "exporting": ("schedule.num_steps=1", "schedule.warmup_steps=0"),
}
USUAL = {("caching", signal.SIGINT), ("caching", signal.SIGTERM), ("training", signal.SIGUSR1)}
"""What every suite checks; the others only the tour, since each takes a process of its own."""


def start(words: Sequence[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """Start Python in a session of its own, so that the processes that it starts can be found."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def living(session: int) -> list[str]:
    """Return the processes of a session that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, facts = path.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, its_session = facts.split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(name)
    return found


def wait_for(condition: Callable[[], object], seconds: float, message: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.05)


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Send a signal to a process alone; return its status as shells count it, and what it said."""
    process.send_signal(number)
    sent = time.monotonic()
    try:
        said, _ = process.communicate(timeout=SECONDS)
        wait_for(lambda: not living(process.pid), sent + SECONDS - time.monotonic(), "its workers go on")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    status = process.returncode
    return (status if status >= 0 else 128 - status), said


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(phase, number, marks=() if (phase, number) in USUAL else pytest.mark.tour)
        for phase in PHASES
        for number in StopRequest.SIGNALS
    ],
)
def test_each_phase_ends_by_each_signal(phase: str, number: int, recipe_file: str, tmp_path: Path) -> None:
    words = [phases.__file__, phase, "--recipe", recipe_file, "--output", "run", *PHASES[phase]]
    process = start(words, tmp_path, RADIO_CACHE=str(tmp_path / "packages"))

    def has_begun() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return (tmp_path / "begun").exists()

    wait_for(has_begun, START_SECONDS, "it does not begin")
    time.sleep(0.2)
    status, said = end(process, number)
    assert status == 128 + number, said
    assert "Traceback" not in said
    assert ("saved in 'run/checkpoints'" in said) == (phase == "training")


def finish(words: Sequence[str], folder: Path) -> float:
    """Run a command to its end; return the seconds that it took."""
    began = time.monotonic()
    process = start(words, folder)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return time.monotonic() - began


def signal_and_resume(words: Sequence[str], folder: Path, seed: int) -> tuple[Path, Path]:
    """Run a command alone, and another one that gets signals at random moments of its sessions until they are enough.

    Returns:
        Both folders, the second in its last state.
    """
    draw, whole = random.Random(seed), folder / "whole"
    whole.mkdir()
    longest = finish(words, whole)
    num_stopped, number_of_run = 0, 0
    stopped = folder / "stopped-0"
    stopped.mkdir()
    for each in range(NUM_SIGNALS):
        process = start(words, stopped)
        try:
            process.wait(draw.uniform(0, 1.1 * longest))
        except subprocess.TimeoutExpired:
            number = draw.choice(StopRequest.SIGNALS)
            status, said = end(process, number)
            assert status in (128 + number, 0), said
            num_stopped += status != 0
        else:  # it was done: another one begins
            assert process.returncode == 0, process.communicate()[0]
            if each < NUM_SIGNALS - 1:
                number_of_run += 1
                stopped = folder / f"stopped-{number_of_run}"
                stopped.mkdir()
    finish(words, stopped)
    logger.warning("%d of %d signals came before the end", num_stopped, NUM_SIGNALS)
    return whole, stopped


def digests(folder: Path, left_out: Sequence[str]) -> dict[str, str]:
    """Return a hash of each file, but for those whose names say that they hold times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(name in path.name for name in left_out)
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_extract_at_random_moments(seed: int, model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["-m", "training.extract", str(model), "--data", str(pictures), "--output", "out", "--dense", "--pca", "4"]
    words += ["--shard-images", "2", "--batch-size", "2"]
    whole, stopped = signal_and_resume(words, tmp_path, seed)
    assert digests(stopped / "out", ("made.json", "README")) == digests(whole / "out", ("made.json", "README"))


@pytest.mark.slow
def test_evaluate_at_random_moments(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["-m", "training.evaluate", str(model), "--data", str(pictures), "--tasks", "knn", "--output", "out.json"]
    whole, stopped = signal_and_resume(words, tmp_path, 1)
    assert digests(stopped / "runs", ()) == digests(whole / "runs", ())


@pytest.mark.slow
def test_finetune_at_random_moments(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["-m", "training.finetune", str(model), "--task", "classification", "--data", str(pictures)]
    words += ["--output", "out", "--steps", "20", "--evaluate-every", "5", "--batch-size", "2"]
    whole, stopped = signal_and_resume(words, tmp_path, 2)
    assert_same_tensors(*(load_file(each / "out/final/model.safetensors") for each in (whole, stopped)))


@pytest.mark.slow
def test_a_server_at_random_moments(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    draw = random.Random(3)
    for _ in range(NUM_SIGNALS):
        process = start(["-m", "training.serve", str(model), "--port", "0"], tmp_path)
        time.sleep(draw.uniform(0, 15))
        number = draw.choice(StopRequest.SIGNALS)
        status, said = end(process, number)
        assert status == 128 + number, said


@pytest.mark.slow
@pytest.mark.packages
def test_a_small_demo_at_random_moments(tmp_path: Path) -> None:
    words = ["-m", "training.demo", "--steps", "60", "data.num_images=512"]
    whole, stopped = signal_and_resume(words, tmp_path, 4)
    assert_same_tensors(*(load_file(each / "runs/demo/final/model.safetensors") for each in (whole, stopped)))
