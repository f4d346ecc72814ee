"""Every command ends by SIGINT, SIGTERM and SIGUSR1, in each phase, with its workers; the log has the seconds.

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
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from forks import Command, forks
from killing import wait_for
from safetensors.torch import load_file
from tiny_distillation import assert_same_tensors, environment

from modeling_radio.core.interruption import StopRequest


logger = logging.getLogger(__name__)

SECONDS = 50.0
"""A command must end in this time, before its phase would. `UNWINDING_SECONDS` is 10; a busy machine needs more."""
START_SECONDS = 300.0
SAID = "said.txt"
"""What a command said, in its folder."""
NUM_SIGNALS = int(os.environ.get("RADIO_SIGNALS", "2"))
"""Signals to each command at random moments."""

PHASES = {
    "fetching": (),
    "building": (),
    "calibrating": ("data.num_workers=2",),
    "caching": ("views={teachers: cached, cache_dir: cache}", "data.num_workers=2"),
    "training": ("schedule.num_steps=100000", "data.num_workers=2"),
    "exporting": ("schedule.num_steps=1", "schedule.warmup_steps=0"),
}
USUAL = {("caching", signal.SIGTERM), ("training", signal.SIGUSR1)}
"""What every suite checks; the others only the tour."""


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start Python in a session of its own, so that the processes that it starts can be found."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells let background processes ignore
    with (folder / SAID).open("wb") as said:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment(),
            stdout=said,
            stderr=subprocess.STDOUT,
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


def end(process: subprocess.Popen[bytes] | Command, number: int) -> int:
    """Send a signal to a process alone; return its status as shells count it."""
    process.send_signal(number)
    sent = time.monotonic()
    try:
        process.wait(SECONDS)
        ended = time.monotonic() - sent
        wait_for(lambda: not living(process.pid), SECONDS - ended, "its workers go on")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode is not None
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    workers = time.monotonic() - sent
    logger.warning("%s: status %d, %.1f s, workers %.1f s", signal.Signals(number).name, status, ended, workers)
    return status


@pytest.fixture(scope="module")
def server() -> "Iterator[subprocess.Popen[bytes]]":
    with forks("phases") as process:
        yield process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(phase, number, marks=() if (phase, number) in USUAL else pytest.mark.tour)
        for phase in PHASES
        for number in StopRequest.SIGNALS
    ],
)
def test_each_phase_ends_by_each_signal(
    server: "subprocess.Popen[bytes]", phase: str, number: int, recipe_file: str, tmp_path: Path
) -> None:
    words = [phase, "--recipe", recipe_file, "--output", "run", *PHASES[phase]]
    with Command(server, words, tmp_path, SAID) as process:

        def has_begun() -> bool:
            assert process.poll() is None, (tmp_path / SAID).read_text()
            return (tmp_path / "begun").exists()

        wait_for(has_begun, START_SECONDS, "it does not begin")
        status = end(process, number)
    said = (tmp_path / SAID).read_text()
    assert status == 128 + number, said
    assert "Traceback" not in said
    assert ("saved in 'run/checkpoints'" in said) == (phase == "training")


def finish(words: Sequence[str], folder: Path) -> float:
    """Run a command to its end; return the seconds that it took."""
    began = time.monotonic()
    assert start(words, folder).wait() == 0, (folder / SAID).read_text()
    return time.monotonic() - began


def signal_and_resume(words: Sequence[str], folder: Path, seed: int) -> Iterator[tuple[Path, Path]]:
    """Run a command alone, and again with signals at random moments: a run that is over makes room for another one.

    Yields:
        The folder of the undisturbed run, and of one that got signals and ended.
    """
    draw, whole = random.Random(seed), folder / "whole"
    whole.mkdir()
    longest = finish(words, whole)
    stopped, num_stopped, num_runs = folder / "stopped", 0, 0
    while num_stopped < NUM_SIGNALS:
        stopped.mkdir(exist_ok=True)
        process = start(words, stopped)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 1.1 * longest))
        number = draw.choice(StopRequest.SIGNALS)
        status = end(process, number)
        assert status in (128 + number, 0), (stopped / SAID).read_text()
        num_stopped += status != 0
        if status == 0:
            num_runs += 1
            yield whole, stopped
            stopped = stopped.rename(folder / f"ended-{num_runs}").with_name("stopped")
    stopped.mkdir(exist_ok=True)
    finish(words, stopped)
    yield whole, stopped


def digests(folder: Path, left_out: Sequence[str]) -> dict[str, str]:
    """Return a hash of each file, but for those whose names say that they hold times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(name in path.name for name in left_out)
    }


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_extract_at_random_moments(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "modeling_radio",
        "extract",
        str(model),
        "--data",
        str(pictures),
        "--output",
        "out",
        "--dense",
        "--pca",
        "4",
    ]
    words += ["--shard-images", "2", "--batch-size", "2"]
    for whole, stopped in signal_and_resume(words, tmp_path, 0):
        assert digests(stopped / "out", ("made.json", "README")) == digests(whole / "out", ("made.json", "README"))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_evaluate_at_random_moments(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = [
        "-m",
        "modeling_radio",
        "evaluate",
        str(model),
        "--data",
        str(pictures),
        "--tasks",
        "knn",
        "--output",
        "out.json",
    ]
    for whole, stopped in signal_and_resume(words, tmp_path, 1):
        assert digests(stopped / "runs", ()) == digests(whole / "runs", ())


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_finetune_at_random_moments(model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["-m", "modeling_radio", "finetune", str(model), "--task", "image-classification", "--data", str(pictures)]
    words += ["--output", "out", "--steps", "20", "--evaluate-every", "5", "--batch-size", "2"]
    for whole, stopped in signal_and_resume(words, tmp_path, 2):
        assert_same_tensors(*(load_file(each / "out/final/model.safetensors") for each in (whole, stopped)))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_server_at_random_moments(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `app`")
    draw = random.Random(3)
    for _ in range(NUM_SIGNALS):
        process = start(["-m", "modeling_radio", "serve", str(model), "--port", "0"], tmp_path)
        time.sleep(draw.uniform(0, 15))
        number = draw.choice(StopRequest.SIGNALS)
        assert end(process, number) == 128 + number, (tmp_path / SAID).read_text()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.packages
def test_a_small_demo_at_random_moments(tmp_path: Path) -> None:
    words = ["-m", "modeling_radio", "demo", "--steps", "60", "data.num_images=512"]
    for whole, stopped in signal_and_resume(words, tmp_path, 4):
        assert_same_tensors(*(load_file(each / "runs/demo/final/model.safetensors") for each in (whole, stopped)))
