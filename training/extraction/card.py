"""The card of a data set, from what is in its files and what it was begun with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core.checkpoints import read_config
from core.files import write_text
from core.timing import Clock
from model_cards.build import license_of
from model_cards.features import Column, FeatureSet, build_features_card
from model_cards.licenses import License, nvidia_license
from modeling_radio.checks_radio import read_json
from training.evaluation.provenance import describe_run
from training.extraction.columns import FEATURES, GRID, ID, MEAN_FEATURES, PCA_FILE, SCALE, SUMMARY
from training.extraction.run import Extraction, Written
from training.extraction.search import build_indexes, index_path, summary_columns
from training.extraction.shards import FOLDER, read_columns, read_manifest


if TYPE_CHECKING:
    from datasets import Features


CARD = "README.md"
MADE = "made.json"
"""On what and when the rows were made, for cards that are written later."""
_OF_MODEL = {
    SUMMARY: "what the model says of the whole image",
    MEAN_FEATURES: "mean of the features of all patches",
    GRID: "rows and columns of the patches",
    FEATURES: "what the model says of each patch, row by row",
}


def finish(extraction: Extraction, written: Written) -> bool:
    """Write indexes where they are asked for, and the card; return whether that names a license.

    A card stays as it is where neither rows nor indexes are new and nothing is asked of it: it may have been edited.
    """
    settings, output = extraction.settings, extraction.settings.output
    if settings.index is not None:
        columns = summary_columns(list(_types(output / extraction.shards[0].path)))
        build_indexes(output, extraction.shards, columns, settings.index)
    asked = settings.chosen_license()
    if written.num_new:
        write_text(output / MADE, json.dumps(_made_now(written), indent=2) + "\n")
    is_asked = asked is not None or settings.model_id is not None or settings.index is not None
    license = asked or inherited_license(settings.checkpoint, output)
    if is_asked or written.num_new or not (output / CARD).exists():
        write_text(output / CARD, str(build_features_card(describe(extraction, written), license)))
    return license is not None


def inherited_license(checkpoint: Path, output: Path) -> License | None:
    """Return the license of a card that is replaced, of the checkpoint's card, or of a checkpoint of NVIDIA's."""
    found = license_of(output) or license_of(checkpoint)
    config = read_config(checkpoint)
    return found or (nvidia_license(str(config.get("version"))) if "args" in config else None)


def describe(extraction: Extraction, written: Written) -> FeatureSet:
    """Return what the card says of a data set whose rows are all there."""
    settings, output = extraction.settings, extraction.settings.output
    source = read_manifest(output)["source"]
    first = extraction.shards[0]
    name = settings.model_id or extraction.model.model.config.version or settings.checkpoint.resolve().name
    return FeatureSet(
        model=name.rpartition("/")[2],
        source=source["name"],
        rows={name: len(split) for name, split in extraction.splits.items()},
        files={name: f"{FOLDER}/{name}-*.parquet" for name in extraction.splits},
        columns=list(_columns(output / first.path)),
        made=_made(extraction, written),
        dtype=settings.dtype,
        is_dense=settings.dense,
        has_bases=settings.pca is not None,
        indexes=_indexes(output, first.split, _types(output / first.path)),
        model_id=settings.model_id,
        source_id=source["hub_id"],
    )


def _types(path: Path) -> Features:
    from datasets import Features
    from pyarrow.parquet import read_schema

    return Features.from_arrow_schema(read_schema(path))


def _columns(path: Path) -> Iterator[Column]:
    """Describe the columns of a file."""
    types = _types(path)
    for name, kind in types.items():
        owner, _, own = name.rpartition("/")
        is_ours = own.removesuffix(SCALE) in _OF_MODEL
        if name == ID:
            yield Column(name, "string", "", "name of the image, once in each split")
        elif not is_ours:
            yield Column(name, _number(kind), "", _meaning_of_copy(kind))
        elif own.endswith(SCALE):
            shape = "(rows * cols,)" if own == FEATURES + SCALE else ""
            yield Column(name, _number(kind), shape, f"by which {name.removesuffix(SCALE)} is multiplied to come back")
        else:
            where = f", by the adaptor for {owner}" if owner else ""
            yield Column(name, _number(kind), _shape(path, name, kind), _OF_MODEL[own] + where)


def _meaning_of_copy(kind: Any) -> str:
    names = getattr(kind, "names", None)
    return f"copied from the source: one of {len(names)} classes" if names else "copied from the source"


def _number(kind: Any) -> str:
    """Return the type of the numbers in a column, however deep its lists are."""
    from datasets import ClassLabel, LargeList, List

    while isinstance(kind, List | LargeList):
        kind = kind.feature
    return "class" if isinstance(kind, ClassLabel) else str(getattr(kind, "dtype", type(kind).__name__))


def _shape(path: Path, name: str, kind: Any) -> str:
    length = getattr(kind, "length", -1)
    if length > 0:
        return f"({length},)"
    grid = f"{name.removesuffix(FEATURES)}{GRID}"
    row = next(read_columns(path, [name, grid])).slice(0, 1).to_pylist()[0]
    values, (rows, cols) = row[name], row[grid]
    if isinstance(values[0], list):
        return f"(rows, cols, {len(values[0][0])})"
    return f"(rows * cols * {len(values) // (rows * cols)},)"


def _indexes(output: Path, split: str, names: Iterable[str]) -> dict[str, str]:
    """Return the indexes of one split by their columns."""
    paths = {column: index_path(split, column) for column in summary_columns(list(names))}
    return {column: path for column, path in paths.items() if (output / path).exists()}


def _made(extraction: Extraction, written: Written) -> list[tuple[str, str]]:
    """Return how the features were made, as far as it decides them or somebody may want to know."""
    settings, model = extraction.settings, extraction.model
    facts, path = read_manifest(settings.output), settings.output / MADE
    size = {"shortest_edge": settings.size} if settings.size else dict(model.processor.to_dict()["size"])
    sides = ", ".join(f"{name.replace('_', ' ')} {value} px" for name, value in size.items() if value is not None)
    made = {
        "model": f"{facts['model']['weights and processor']} (hash of weights, configuration and processor)",
        "images": f"{sides}; patches of {model.patch_size} px",
        "choice of images": settings.max_images and f"{settings.max_images} of each split, seed {settings.random_seed}",
        "computed in": settings.precision,
        "stored as": settings.dtype,
        "patches": settings.pool > 1 and f"means of {settings.pool} x {settings.pool}",
        "principal components": settings.pca and f"{settings.pca}, from a choice of images, in {PCA_FILE}",
        "adaptors": ", ".join(facts["settings"]["adaptors"]),
        "files": f"{written.num_files}, {written.num_bytes / 1e6:.1f} MB",
        **(read_json(path) if path.is_file() else {}),
    }
    return [(what, str(value)) for what, value in made.items() if value]


def _made_now(written: Written) -> dict[str, str]:
    """Return on what and when rows were made by this process, and how fast if they are all."""
    run = describe_run("", Clock())
    versions = {name: value for name, value in run["versions"].items() if name in ("python", "torch", "transformers")}
    is_all = written.num_new == written.num_rows
    return {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else run["machine"],
        **({"speed": f"{written.num_new / written.seconds:.1f} images/s"} if is_all else {}),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "date": run["date"],
    }
