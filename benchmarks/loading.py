"""Times `from_pretrained` beside reading the same file with safetensors alone, and what memory both take.

    python -m benchmarks.loading [--preset c-radio_v4-h] [--dtype float32] [--rounds 7] [--caches warm,cold]

Each opening happens in a new process that has imported everything before, and ends when every page of every weight was
read: weights that are mapped into memory are not there before. The contenders take turns: `safetensors.torch.load_file`
of the file, our model, and transformers' native one from the same folder. With a cold cache the file is taken out of
the system's cache before each of them. Memory is what the process holds at most, less what it held before, over the
size of the file. Needs twice that size of disk.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers.initialization import no_init_weights
from transformers.models.radio import RadioModel as NativeRadioModel

from benchmarks.measuring.new_process import peak_mb_of, run_anew
from benchmarks.measuring.results import report
from benchmarks.measuring.settings import DTYPES
from benchmarks.measuring.turns import Turns
from foundation.command_line import Command
from foundation.fields import OneOf
from foundation.settings import Settings
from modeling_radio import RadioConfig, RadioModel


FILE_ALONE = "safetensors alone"
CONTENDERS = (FILE_ALONE, "ours", "native")
WEIGHTS = "model.safetensors"
CACHES = ("warm", "cold")
PAGE_BYTES = resource.getpagesize()


def save_network(preset: str, dtype: str, folder: Path) -> None:
    """Save a network of random numbers in one file, as it comes from memory: no value of it matters."""
    with no_init_weights():
        model = RadioModel(RadioConfig.from_preset(preset)).to(getattr(torch, dtype))
    for weight in model.parameters():
        weight.data.fill_(0.01)
    model.save_pretrained(folder, max_shard_size="1000GB")


def open_weights(contender: str, folder: str) -> list[Tensor]:
    """Open a folder as a contender does; return all of its weights."""
    if contender == FILE_ALONE:
        return list(load_file(Path(folder, WEIGHTS)).values())
    model: nn.Module = {"ours": RadioModel, "native": NativeRadioModel}[contender].from_pretrained(folder)
    return [*model.parameters(), *model.buffers()]


def touch_pages(weights: Iterable[Tensor]) -> int:
    """Read one byte of every page of memory; return the sum of them."""
    return sum(int(weight.detach().reshape(-1).view(torch.uint8)[::PAGE_BYTES].sum()) for weight in weights)


def time_opening(contender: str, folder: str) -> dict[str, float]:
    """Open a folder in this process, which has imported everything; return seconds and the memory of it in MB."""
    transformers.utils.logging.disable_progress_bar()
    seconds: list[float] = []

    def open_and_touch() -> None:
        began = time.perf_counter()
        touch_pages(open_weights(contender, folder))
        seconds.append(time.perf_counter() - began)

    before = peak_mb_of(lambda: None)
    return {"memory_mb": peak_mb_of(open_and_touch) - before, "seconds": seconds[0]}


def leave_cache(path: Path) -> None:
    """Take a file out of the system's cache, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(settings: "LoadingSettings") -> list[dict[str, object]]:
    """Return one row for each state of the cache and contender."""
    with tempfile.TemporaryDirectory() as folder:
        save_network(settings.preset, settings.dtype, Path(folder))
        return [row for cache in settings.caches for row in summarize(cache, *_take_turns(cache, folder, settings))]


def _take_turns(cache: str, folder: str, settings: "LoadingSettings") -> tuple[dict[str, list[dict[str, float]]], int]:
    """Return what `time_opening` told in each round, by contender, and the size of the file in bytes."""
    weights = Path(folder, WEIGHTS)
    told: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
    order = list(CONTENDERS)
    for number in tqdm(range(settings.rounds + 1), desc=f"{cache} cache"):
        for contender in order:
            if cache == "cold":
                leave_cache(weights)
            answer = run_anew(time_opening, contender, folder).value
            if number:  # the round before fills the caches
                told[contender].append(answer)
        order.reverse()
    return told, weights.stat().st_size


def summarize(cache: str, told: dict[str, list[dict[str, Any]]], num_bytes: int) -> list[dict[str, object]]:
    """Return the rows of one state of the cache.

    Args:
        cache: "warm" or "cold".
        told: What `time_opening` told in each round, by contender.
        num_bytes: Size of the file.
    """
    turns = Turns({contender: [one["seconds"] for one in answers] for contender, answers in told.items()})
    return [
        {
            "cache": cache,
            "contender": contender,
            "ms": turns.milliseconds(contender),
            "time, of the file alone": str(turns.times_as_fast(FILE_ALONE, contender)),
            "memory, of the file's size": round(max(one["memory_mb"] for one in answers) * 1e6 / num_bytes, 3),
        }
        for contender, answers in told.items()
    ]


class LoadingSettings(Settings):
    """What shall be opened.

    Attributes:
        preset: Shape of the model.
        dtype: Data type of its weights.
        rounds: Turns of each contender.
        caches: Whether the file is in the system's cache before: "warm" is, "cold" is not.
    """

    preset: Annotated[str, OneOf(RadioConfig.presets)] = "c-radio_v4-h"
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    rounds: int = Field(7, gt=0)
    caches: Annotated[list[str], OneOf(CACHES)] = ["warm", "cold"]


COMMAND = Command("benchmarks.loading", __doc__.partition("\n")[0], LoadingSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: LoadingSettings) -> None:
    facts = {"parameters, millions": round(_num_parameters(settings.preset) / 1e6, 1), "dtype": settings.dtype}
    report("loading", settings.preset, measure(settings), facts=facts)


def _num_parameters(preset: str) -> int:
    with torch.device("meta"):
        return RadioModel(RadioConfig.from_preset(preset)).num_parameters()


if __name__ == "__main__":
    sys.exit(main())
