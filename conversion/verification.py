"""Compares a model with stored outputs, in the layout of the reference cases."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeling_radio import RadioModel


_KEY = re.compile(
    r"(?P<size>\d+x\d+)/(?P<mode>global|window\d+|intermediates/(?:sparse|dense))/(?P<name>[^/]+)/(?P<kind>\w+)"
)


@dataclass(frozen=True)
class Comparison:
    """One stored output beside the model's.

    Attributes:
        key: Its key in the file.
        difference: Largest absolute difference, infinite where the shapes differ, or `None` if the model has no such
            adaptor.
    """

    key: str
    difference: float | None


def compare_with_reference(model: RadioModel, reference: str | Path) -> list[Comparison]:
    """Run a model on the images of a file and compare every output that it stores.

    Args:
        model: In evaluation mode, in float32.
        reference: A safetensors file with keys `HxW/image_uint8`, `HxW/global|windowN/NAME/summary|features` (NAME is
            `backbone` or an adaptor, features are token sequences) and `HxW/intermediates/sparse|dense/BLOCK/...`
            (features are maps).

    Returns:
        One comparison per stored output.

    Raises:
        ValueError: If the file is no such file, or holds nothing that the model has.
    """
    try:
        stored = load_file(reference)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"Cannot read the reference {str(reference)!r}: {error}") from error
    groups: dict[tuple[str, str], list[re.Match[str]]] = {}
    for key in stored:
        if match := _KEY.fullmatch(key):
            groups.setdefault((match["size"], match["mode"]), []).append(match)
    comparisons = [
        Comparison(match[0], _difference(outputs.get(f"{match['name']}/{match['kind']}"), stored[match[0]]))
        for (size, mode), matches in groups.items()
        for outputs in [_run(model, stored[f"{size}/image_uint8"] / 255, mode, matches)]
        for match in matches
    ]
    if all(comparison.difference is None for comparison in comparisons):
        raise ValueError(f"The reference {str(reference)!r} holds no output of this model.")
    return comparisons


def format_comparisons(comparisons: list[Comparison], tolerance: float) -> str:
    """Return a table with one line per image size and mode."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        size, mode, *rest = comparison.key.split("/")
        group = f"{size} {mode} {rest[0]}" if mode == "intermediates" else f"{size} {mode}"
        groups.setdefault(group, []).append(comparison)
    return "\n".join([f"{'outputs':<36}{'compared':>9}{'max |difference|':>18}", *_lines(groups, tolerance)])


def _lines(groups: dict[str, list[Comparison]], tolerance: float) -> Iterator[str]:
    for group, members in groups.items():
        differences = [member.difference for member in members if member.difference is not None]
        if not differences:
            yield f"{group:<36}{0:>9}{'not in this model':>18}"
            continue
        verdict = "ok" if max(differences) <= tolerance else f"beyond {tolerance:g}"
        yield f"{group:<36}{len(differences):>9}{max(differences):>18.2e}  {verdict}"


def largest_difference(comparisons: list[Comparison]) -> float:
    """Return the largest absolute difference of all outputs."""
    return max(comparison.difference for comparison in comparisons if comparison.difference is not None)


@torch.no_grad()
def _run(model: RadioModel, images: Tensor, mode: str, wanted: list[re.Match[str]]) -> dict[str, Tensor]:
    """Return the outputs of one mode under `NAME/summary` and `NAME/features`."""
    if mode.startswith("intermediates/"):
        blocks = sorted({int(match["name"]) for match in wanted})
        levels = model.get_intermediate_features(
            images, blocks, aggregation="dense" if mode.endswith("dense") else "sparse", window_size="global"
        )
        named = {str(block): level for block, level in zip(blocks, levels, strict=True)}
    else:
        window_size = "global" if mode == "global" else int(mode.removeprefix("window"))
        output = model(images, window_size=window_size, adaptor_names=list(model.radio_model.adaptors))
        named = {"backbone": output, **output.adaptors}
    return {
        f"{name}/{kind}": value
        for name, entry in named.items()
        for kind, value in (("summary", entry.summary), ("features", entry.features))
        if value is not None
    }


def _difference(output: Tensor | None, stored: Tensor) -> float | None:
    if output is None:
        return None
    if output.shape != stored.shape:
        return float("inf")
    difference = (output.float() - stored.float()).abs().max().item()
    return difference if difference == difference else float("inf")  # NaN counts as a mismatch
