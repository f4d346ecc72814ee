"""What filters left out of a run's images, for the log and for `data.json` of the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from foundation.files import write_text
from training.data.image_table import Images
from training.recipe import Recipe


NAME = "data.json"


def left_out_of(images: Images, admitted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how many images a data set by number has, and how many were left out of it and of partitions, by reason.

    Args:
        images: The data set.
        admitted: By partition the numbers of the images that it sees, where these are not all.
    """
    too_small = {name: len(images) - len(numbers) for name, numbers in admitted.items()}
    return {"images": len(images), "left_out": dict(images.left_out), "too_small_for_partition": too_small}


def left_out_of_streams(places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many streamed images were left out so far of each partition, by reason, over all ranks.

    Args:
        places: How far each rank has read, as a checkpoint holds it.
    """
    counts: dict[str, Counter[str]] = {}
    for place in places:
        for partition, stream in place.items():
            for source in stream["sources"]:
                counts.setdefault(partition, Counter()).update(source["left_out"])
    return {"left_out_so_far": {partition: dict(count) for partition, count in counts.items()}}


def write_data_record(folder: Path, recipe: Recipe, record: Mapping[str, Any]) -> None:
    """Write `data.json` into the folder of a run whose recipe has filters."""
    if recipe.data.filters.is_used:
        content = {"filters": recipe.data.filters.to_dict(), **record}
        write_text(folder / NAME, json.dumps(content, indent=2) + "\n")


def describe_left_out(record: Mapping[str, Any]) -> str:
    """Return the line of the log on a data set by number."""
    reasons = [f"{count:,} {reason}" for reason, count in record["left_out"].items()] or ["none"]
    line = f"Filters left out {', '.join(reasons)}; {record['images']:,} images stay."
    small = [f"{count:,} for {name}" for name, count in record["too_small_for_partition"].items()]
    return f"{line} Of these are too small: {', '.join(small)}." if small else line
