"""Peak memory of each contender in a new process, and how long such a process takes to its first features."""

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial

import torch
from tqdm import tqdm

from benchmarks.contenders.registry import CONTENDERS, NATIVE, OURS
from benchmarks.contenders.shapes import Place
from benchmarks.measuring.new_process import peak_mb_of, run_anew
from modeling_radio import RadioConfig, RadioModel


SMALL = "radio-test"
"""Runs first, so that what the packages themselves hold does not count."""
Row = dict[str, object]


def measure_memory(preset: str, sizes: Sequence[int], place: Place, names: Sequence[str]) -> list[Row]:
    """Return one row for each contender: MB of weights and activations at their most while one image runs, by size."""
    rows = []
    for name in tqdm(names, desc="memory"):
        dtype = str(place.dtype).removeprefix("torch.")
        peaks = run_anew(memory_of, name, preset, place.device, dtype, list(sizes)).value
        row: Row = {"contender": name, "dtype": dtype}
        rows.append(row | {f"{size} px, MB": round(peak) for size, peak in zip(sizes, peaks, strict=True)})
    return rows


@torch.inference_mode()
def memory_of(name: str, preset: str, device: str, dtype: str, sizes: list[int]) -> list[float]:
    """In a new process: return the MB that one image of each size takes at its most, weights included."""
    place = Place(device, getattr(torch, dtype))
    contender, config = CONTENDERS[name], RadioConfig.from_preset(preset)
    contender.encoder(RadioConfig.from_preset(SMALL), place, 64)(
        torch.rand(1, 3, 64, 64, device=device).to(place.dtype)
    )
    before, peaks, encode = _peak_mb(place, lambda: None), [], None
    for size in sizes:
        if encode is None or contender.by_size:
            encode = None  # so that two are never held
            encode = contender.encoder(config, place, size)
        image = torch.rand(1, 3, size, size, device=device).to(place.dtype)
        peaks.append(_peak_mb(place, partial(encode, image)) - before)
    return peaks


def _peak_mb(place: Place, call) -> float:
    if place.device == "cpu":
        return peak_mb_of(call)
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 1e6


def measure_cold_start(preset: str, place: Place, num_rounds: int) -> list[Row]:
    """Return one row for ours and the native one: seconds from the start of a process to features of one image."""
    dtype = str(place.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as folder:
        RadioModel(RadioConfig.from_preset(preset)).to(place.dtype).save_pretrained(folder)
        rounds = [
            {name: run_anew(open_and_encode, name, folder, place.device, dtype) for name in (OURS, NATIVE)}
            for _ in range(num_rounds)
        ]
    return [
        {
            "contender": name,
            "dtype": dtype,
            "cold start, s": round(statistics.median(each[name].seconds for each in rounds), 2),
            "of that from_pretrained, s": round(statistics.median(each[name].value for each in rounds), 2),
            "process, MB": round(statistics.median(each[name].peak_mb for each in rounds)),
        }
        for name in (OURS, NATIVE)
    ]


@torch.inference_mode()
def open_and_encode(name: str, folder: str, device: str, dtype: str) -> float:
    """In a new process: open a checkpoint, encode an image of 224 px, and return what opening took."""
    import time

    if name == OURS:
        from modeling_radio import RadioModel as Model
    else:
        from transformers.models.radio import RadioModel as Model
    began = time.perf_counter()
    model = Model.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
    opened = time.perf_counter() - began
    float(model(torch.rand(1, 3, 224, 224, device=device).to(getattr(torch, dtype))).summary.sum())
    return opened
