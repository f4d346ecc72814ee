"""The card of a data set, written from its files and its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modeling_radio.checks_radio import read_json
from modeling_radio.core.command_line import recorded_command
from modeling_radio.core.ids import name_of_folder
from modeling_radio.core.machine import arithmetic
from modeling_radio.core.opening import read_config
from modeling_radio.core.timing import Clock, describe_run
from modeling_radio.extraction.columns import FEATURES, GRID, ID, MEAN_FEATURES, PCA_FILE, SCALE, SUMMARY
from modeling_radio.extraction.lance_data import write_lance
from modeling_radio.extraction.nearest import build_indexes, index_path, summary_columns
from modeling_radio.extraction.run import Extraction, Written
from modeling_radio.extraction.shards import (
    FOLDER,
    hash_in,
    naming_damaged,
    read_columns,
    read_manifest,
    renew_sums,
)
from modeling_radio.extraction.store import Store
from modeling_radio.model_cards.build import license_of
from modeling_radio.model_cards.features import Column, FeatureSet, build_features_card
from modeling_radio.model_cards.licenses import License, nvidia_license


if TYPE_CHECKING:
    from datasets import Features


CARD = "README.md"
MADE = "made.json"
"""Machine, speed, versions and date of the rows, for cards that are written later."""
_OF_MODEL = {
    SUMMARY: "what the model says of the whole image",
    MEAN_FEATURES: "mean of the features of all patches",
    GRID: "rows and columns of the patches",
    FEATURES: "what the model says of each patch, row by row",
}


def finish(extraction: Extraction, written: Written) -> bool:
    """Write indexes and format that the settings ask for, and the card; return whether the card names a license.

    A card may have been edited: it stays if there are no new rows and indexes, and the settings name no id.
    Of several workers that made the rows together, the one that completed them writes.
    """
    settings, store = extraction.settings, Store(extraction.settings.output)
    license = inherited_license(settings.checkpoint, store)
    if written.role == "helped":
        return license is not None
    shards, is_completed = extraction.shards(), written.role == "completed"
    summaries = summary_columns(list(_types(store, shards[0].path)))
    if settings.index is not None:
        build_indexes(store, shards, summaries, settings.index)
    if is_completed:
        store.write(MADE, (json.dumps(_made_now(extraction, written), indent=2) + "\n").encode())
        renew_sums(store, {MADE: hash_in(store, MADE)})
    is_new = settings.model_id is not None or settings.index is not None or is_completed
    if is_new or not store.exists(CARD):
        card = build_features_card(_describe(extraction, written, store), license)
        store.write(CARD, str(card).encode())
    if settings.format == "lance":
        write_lance(store, shards, summaries)
    return license is not None


def inherited_license(checkpoint: Path, store: Store) -> License | None:
    """Return the license of the card that is replaced, of the checkpoint's card, or of a checkpoint of NVIDIA's."""
    own = None
    if store.exists(CARD):
        with store.reading(CARD) as path:
            own = license_of(path.parent)
    found = own or license_of(checkpoint)
    config = read_config(checkpoint)
    return found or (nvidia_license(str(config.get("version"))) if "args" in config else None)


def _describe(extraction: Extraction, written: Written, store: Store) -> FeatureSet:
    """Return the content of the card of a complete data set."""
    settings, first = extraction.settings, extraction.shards()[0]
    source = read_manifest(store)["source"]
    name = settings.model_id or extraction.embedder.model.model.config.version or name_of_folder(settings.checkpoint)
    indexes = {column: index_path(first.split, column) for column in summary_columns(list(_types(store, first.path)))}
    return FeatureSet(
        model=name.rpartition("/")[2],
        source=source["name"],
        rows=dict(written.rows),
        files={name: f"{FOLDER}/{name}-*.parquet" for name in extraction.splits},
        columns=list(_columns(store, first.path)),
        made=_made(extraction, written, store),
        dtype=settings.vector_dtype,
        is_dense=settings.dense,
        has_bases=settings.pca is not None,
        indexes={column: path for column, path in indexes.items() if store.exists(path)},
        model_id=settings.model_id,
        source_id=source["hub_id"],
    )


def _types(store: Store, path: str) -> Features:
    from datasets import Features
    from pyarrow.parquet import read_schema

    with naming_damaged(store, path), store.open(path) as file:
        return Features.from_arrow_schema(read_schema(file))


def _columns(store: Store, path: str) -> Iterator[Column]:
    """Yield descriptions of the columns of a file."""
    for name, kind in _types(store, path).items():
        owner, _, own = name.rpartition("/")
        if name == ID:
            yield Column(name, "string", "", "name of the image, once in each split")
        elif own.removesuffix(SCALE) not in _OF_MODEL:
            names = getattr(kind, "names", None)
            classes = f": one of {len(names)} classes" if names else ""
            yield Column(name, _number(kind), "", f"copied from the source{classes}")
        elif own.endswith(SCALE):
            shape = "(rows * cols,)" if own == FEATURES + SCALE else ""
            yield Column(name, _number(kind), shape, f"by which {name.removesuffix(SCALE)} is multiplied to come back")
        else:
            where = f", by the adaptor for {owner}" if owner else ""
            yield Column(name, _number(kind), _shape(store, path, name, kind), _OF_MODEL[own] + where)


def _number(kind: Any) -> str:
    """Return the type of the numbers in a column, however deep its lists are."""
    from datasets import ClassLabel, LargeList, List

    while isinstance(kind, List | LargeList):
        kind = kind.feature
    return "class" if isinstance(kind, ClassLabel) else str(getattr(kind, "dtype", type(kind).__name__))


def _shape(store: Store, path: str, name: str, kind: Any) -> str:
    length = getattr(kind, "length", -1)
    if length > 0:
        return f"({length},)"
    grid = f"{name.removesuffix(FEATURES)}{GRID}"
    row = next(read_columns(store, path, [name, grid])).slice(0, 1).to_pylist()[0]
    values, (rows, cols) = row[name], row[grid]
    if isinstance(values[0], list):
        return f"(rows, cols, {len(values[0][0])})"
    return f"(rows * cols * {len(values) // (rows * cols)},)"


def _made(extraction: Extraction, written: Written, store: Store) -> list[tuple[str, str]]:
    """Return names and values of all that decides the features, and of how they were computed."""
    settings, model = extraction.settings, extraction.embedder.model
    facts = read_manifest(store)
    made_then: dict[str, Any] = {}
    if store.exists(MADE):
        with store.reading(MADE) as path:
            made_then = read_json(path)
    usual = {} if settings.tile_size else dict(model.processor.to_dict()["size"])
    size = {"shortest_edge": settings.size} if settings.size else usual
    sides = ", ".join(f"{name.replace('_', ' ')} {value} px" for name, value in size.items() if value is not None)
    made = {
        "model": f"{facts['model']['weights and processor']} (hash of weights, configuration and processor)",
        "images": f"{sides or 'their own size'}; patches of {model.patch_size} px",
        "choice of images": settings.max_images and f"{settings.max_images} of each split",
        "computed in": settings.dtype,
        "tiles": settings.tile_size
        and f"{settings.tile_size} px, {settings.tile_overlap:.0%} of it shared with the next",
        "stored as": settings.vector_dtype,
        "patches": settings.pool > 1 and f"means of {settings.pool} x {settings.pool}",
        "principal components": settings.pca and f"{settings.pca}, from a choice of images, in {PCA_FILE}",
        "adaptors": ", ".join(facts["settings"]["adaptors"]),
        "files": f"{written.num_files}, {written.num_bytes / 1e6:.1f} MB",
        **made_then,
    }
    return [(what, str(value)) for what, value in made.items() if value]


def _made_now(extraction: Extraction, written: Written) -> dict[str, str]:
    """Return machine, versions and date of this run, and its speed if it encoded all rows."""
    run = describe_run(recorded_command("radio extract", extraction.settings, ["checkpoint"]), Clock())
    versions = {name: value for name, value in run["versions"].items() if name in ("python", "torch", "transformers")}
    is_all = written.num_new == written.num_rows
    device = extraction.embedder.model.device
    is_gpu = device.type == "cuda"
    return {
        "command": run["command"],
        "machine": torch.cuda.get_device_name(device) if is_gpu else run["machine"],
        **({} if is_gpu else {"instruction set": str(arithmetic()["instruction set"])}),
        **({"speed": f"{written.num_new / written.seconds:.1f} images/s"} if is_all else {}),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "date": run["date"],
    }
