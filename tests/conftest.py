"""Settings for every test: no network, and remote code cached away from the user's own cache."""

import gc
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest


# Both are read when transformers is imported, so they are set before any test module is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="radio-test-modules-")

import tiny_texts
import torch
from elsewhere import Elsewhere
from hypothesis import HealthCheck, settings
from serving import serve
from transformers import CLIPModel, PreTrainedTokenizerFast, Siglip2Model, SiglipModel


PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "photograph.jpg"


# A fuzz test is a `@given` marked `@pytest.mark.fuzz`; it states neither examples nor deadline, for these profiles do.
# The usual suite draws a few examples for it, `-m fuzz` as many as a night allows (fewer in both for what is slow: set
# `max_examples=settings.default.max_examples // 10`). Draws follow from the test's own code: a failure comes again.
# The function that it calls is expected to return or to raise our own errors; name these in `pytest.raises` or a
# `try`, never a bare `Exception`. Fixtures are made once for all examples, so a folder must be cleared by the test.
_FUZZ = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("usual", max_examples=50, **_FUZZ)
settings.register_profile("large", max_examples=5000, **_FUZZ)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples fuzz tests draw, before any is imported."""
    settings.load_profile("large" if config.option.markexpr == "fuzz" else "usual")
    gc.disable()  # nothing that is imported or collected is garbage, and looking takes a quarter of the time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that in the end no process waits for one (`make test` keeps this order)."""
    items.sort(key=lambda item: "whole" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what was imported: half a second each time that accelerate asks for it."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers whichever tests ran before it."""
    # For each kind of device that is not in use, the other one would format a traceback.
    seed = torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed
    seed(0)


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
