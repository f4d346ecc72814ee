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

import torch
from elsewhere import Elsewhere
from hypothesis import HealthCheck, settings
from serving import serve
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)


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


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what was imported: half a second each time that accelerate asks for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)


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


VISION = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 3,
}


@pytest.fixture
def build_dual_encoder():
    """Return a function that builds a tiny random teacher with an image and a text tower."""

    def build(kind: str, width: int) -> CLIPModel | SiglipModel | Siglip2Model:
        if kind == "clip":
            config = CLIPConfig(text_config=TEXT, vision_config=VISION | {"hidden_size": 16}, projection_dim=width)
            return CLIPModel(config).eval()
        text, vision = TEXT | {"projection_size": width}, VISION | {"hidden_size": width}
        if kind == "siglip2":
            return Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval()
        return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()

    return build


@pytest.fixture
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that tells `cat`, `Cat` and `cat.` apart, as canonicalizing ones do not."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "this", "is", "cat", "dog", "grass"]
    words += ["Cat", "cat.", "dog.", "This", "ice", "cream"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


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
