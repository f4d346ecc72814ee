"""Settings for every test: no network, and caches away from the user's own."""

import functools
import gc
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest


# Both are read when transformers is imported, so they are set before any test module is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="radio-test-modules-")

import psutil
import tiny_texts
import torch
from drawn_assets import assets
from elsewhere import Elsewhere
from hypothesis import HealthCheck, settings
from local_server import serve
from reference_cases import edited, hub_folder, reference, training_file
from tiny_checkpoints import opened, photograph, picture, save_tuned, texts
from tiny_folders import model, pictures, words
from training_fixtures import _own_accelerator, far_shifts, recipe_file, tiny_world, write_source
from transformers import CLIPModel, PreTrainedTokenizerFast, Siglip2Model, SiglipModel
from tuning_fixtures import (
    base,
    class_folders,
    coco_content,
    coco_folder,
    depth_folder,
    one_figure_image,
    outlines_folder,
    own_datasets_cache,
    voc_folder,
    zero_shot_folder,
)

from modeling_radio.core.files import cache_dir


# fmt: off
__all__ = [
    "_own_accelerator", "assets", "base", "class_folders", "coco_content", "coco_folder", "depth_folder", "edited",
    "far_shifts", "hub_folder", "model", "one_figure_image", "opened", "outlines_folder", "own_datasets_cache",
    "photograph", "picture", "pictures", "recipe_file", "reference", "save_tuned", "texts", "tiny_world",
    "training_file", "voc_folder", "words", "write_source", "zero_shot_folder",
]
# fmt: on
PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "photograph.jpg"


# Processes that a shell starts in the background ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A fuzz test is a `@given` marked `@pytest.mark.fuzz`; it states neither examples nor deadline, for these profiles do.
# The usual suite draws a few examples for it, the same each time; FUZZ_SECONDS=3600 with `-m fuzz` shares an hour among
# the tests, draws others each time and compares the memory (fewer at once for what is slow: set
# `max_examples=settings.default.max_examples // 10`). The function that it calls is expected to return or to raise our
# own errors; name these in `pytest.raises` or a `try`, never a bare `Exception`. Fixtures are made once for all
# examples, so a folder must be cleared by the test.
FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
MAX_GROWTH_MB = 200  # our choice: caches and fragments of memory stay below; a kilobyte a case does not for long
_FUZZ = {
    "max_examples": 25,
    "database": None,
    "deadline": timedelta(seconds=60),  # of one example; several times the slowest on a busy machine
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("usual", derandomize=True, **_FUZZ)
settings.register_profile("for_seconds", **_FUZZ)


def pytest_configure() -> None:
    """Choose how fuzz tests draw, before any is imported."""
    settings.load_profile("for_seconds" if FUZZ_SECONDS else "usual")
    gc.disable()  # nothing that is imported or collected is garbage, and looking takes a quarter of the time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that in the end no process waits for one (`make test` keeps this order)."""
    items.sort(key=lambda item: "whole" not in item.path.parts)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let fuzz tests go on for `FUZZ_SECONDS`, and garbage collection pass over what was imported.

    That is half a second each time that accelerate asks for it.
    """
    fuzz = [item for item in session.items if item.get_closest_marker("fuzz")] if FUZZ_SECONDS else []
    for item in fuzz:
        _go_on(item, FUZZ_SECONDS / len(fuzz))
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # Python's 700 looks after each network that is built: a fiftieth of the time
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Let garbage collection also pass over what earlier files left, which made each run of accelerate slower."""
    result = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return result


def _go_on(item: pytest.Function, seconds: float) -> None:
    """Let a fuzz test draw examples for so long, count them, and fail where memory grows after the first fifth."""
    test, case, process = item.obj, item.obj.hypothesis.inner_test, psutil.Process()
    num_cases = 0

    @functools.wraps(case)
    def counted(*arguments: Any, **named: Any) -> None:
        nonlocal num_cases
        num_cases += 1
        case(*arguments, **named)

    def run_until(end: float, fixtures: dict[str, Any]) -> float:
        while time.monotonic() < end:
            test(**fixtures)
        gc.collect()
        return process.memory_info().rss / 1e6

    @functools.wraps(test)
    def repeated(**fixtures: Any) -> None:
        start = time.monotonic()
        try:
            before = run_until(start + seconds / 5, fixtures)
            after = run_until(start + seconds, fixtures)
        finally:
            took = time.monotonic() - start
            item.user_properties.append(("fuzz", f"{num_cases} cases in {took:.0f} s"))
        item.user_properties.append(("fuzz", f"memory {before:.0f} -> {after:.0f} MB"))
        assert after - before < MAX_GROWTH_MB

    test.hypothesis.inner_test, item.obj = counted, repeated
    item.add_marker(pytest.mark.timeout(seconds + 600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many examples fuzz tests drew in `FUZZ_SECONDS`, and what memory they left."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        told = [text for name, text in report.user_properties if name == "fuzz"]
        if told and report.when == "call":
            terminalreporter.write_line(f"{report.nodeid}: {', '.join(told)}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers whichever tests ran before it."""
    # For each kind of device that is not in use, the other one would format a traceback.
    seed = torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed
    seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is computed out of the user's cache, whose packages are used."""
    folder, packages = tmp_path_factory.mktemp("radio-cache"), cache_dir() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (folder / "packages").symlink_to(packages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADIO_CACHE", str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Let files reach the disk when they may: a process that is killed loses nothing, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: the networks of these tests are so small that threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which no file grows beyond a kilobyte: writers then fail as on a full disk.

    It must end before the test does, since pytest may write its report to a file.
    """

    @contextmanager
    def limit() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a photograph on a server of our own, since pipelines also take addresses of images."""
    with serve(PHOTOGRAPH.parent) as address:
        yield f"{address}/{PHOTOGRAPH.name}"


@pytest.fixture(scope="session")
def build_dual_encoder() -> Callable[[str, int], CLIPModel | SiglipModel | Siglip2Model]:
    """Return a function that builds a tiny random teacher with an image and a text tower."""
    return tiny_texts.build_dual_encoder


@pytest.fixture
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that tells `cat`, `Cat` and `cat.` apart, as canonicalizing ones do not."""
    return tiny_texts.build_word_tokenizer()


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Elsewhere]:
    """What starts processes that know neither this repository nor the Hub."""
    processes = Elsewhere()
    yield processes
    processes.stop()


@pytest.fixture
def run_elsewhere(elsewhere):
    """Return a function that runs code in a fresh process elsewhere, and returns what it printed."""

    def run(code: str, folder: Path, *arguments: object) -> str:
        result = elsewhere.run(code, folder, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
