"""Nearest neighbors among extracted features: indexes, search, and a page of the images found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.v2.functional import resize
from tqdm.auto import tqdm

from modeling_radio.core.files import hash_file, one_line_errors
from modeling_radio.core.ranks import device_of_process
from modeling_radio.core.settings import hash_of
from modeling_radio.core.tables import markdown, plain_cell
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb, to_tensor
from modeling_radio.data.image_folder import IMAGE_SUFFIXES
from modeling_radio.evaluation.features import Wanted, encode_each
from modeling_radio.evaluation.models.radio import AUTOCAST_TYPES, RadioFeatures, tiles_of
from modeling_radio.extraction.columns import ID, MEAN_FEATURES, SCALE, SUMMARY, restored
from modeling_radio.extraction.lance_data import find_in_lance
from modeling_radio.extraction.settings import SearchSettings, SourceSettings
from modeling_radio.extraction.shards import (
    RowSettings,
    Shard,
    naming_damaged,
    read_columns,
    read_manifest,
    read_sums,
    renew_sums,
    shards_of,
)
from modeling_radio.extraction.source import open_source
from modeling_radio.extraction.store import Store
from modeling_radio.figures.page import CaptionedImage, ImageRow, Section, check_page, write_page
from modeling_radio.metrics.feature_model import TextModel


FOLDER = "index"
NUM_LINKS = 32
"""Links of each vector in a "hnsw" index: the default of faiss."""
SHOWN_PX = 320
"""Our choice for the longer side of an image on the page."""


def index_path(split: str, column: str) -> str:
    """Return the path of the index of a column of a split in the data set's folder."""
    return f"{FOLDER}/{split}-{column.replace('/', '--')}.faiss"


def build_indexes(store: Store, shards: Sequence[Shard], columns: Sequence[str], kind: str) -> None:
    """Write an index of unit vectors for each column and split.

    Args:
        store: Folder of the data set.
        shards: All its files.
        columns: Columns of one vector for each image.
        kind: "flat" or "hnsw".

    Raises:
        WriteError: If writing fails, for example on a full disk.
    """
    import faiss

    by_split = _by_split(shards)
    # Checksums go first: if this is killed, an index without a checksum is written again, but one with the checksum of
    # an older index would count as damaged.
    renew_sums(store, dict.fromkeys(index_path(split, column) for split in by_split for column in columns))
    digests = dict[str, str | None]()
    for column in columns:
        for split, of_split in by_split.items():
            index: Any = None
            for shard in tqdm(of_split, f"index of {column}", unit=" files", leave=False, disable=None):
                for vectors in _unit_vectors(store, shard.path, column):
                    if index is None and kind == "flat":
                        index = faiss.IndexFlatIP(vectors.shape[1])
                    elif index is None:
                        index = faiss.IndexHNSWFlat(vectors.shape[1], NUM_LINKS, faiss.METRIC_INNER_PRODUCT)
                    index.add(vectors)
            with store.writing(index_path(split, column)) as path, one_line_errors(path):
                faiss.write_index(index, str(path))
                digests[index_path(split, column)] = hash_file(path)
    renew_sums(store, digests)


def nearest(
    store: Store, shards: Sequence[Shard], column: str, query: np.ndarray, top: int
) -> list[tuple[float, str, int]]:
    """Return the rows with the largest cosine, as cosine, split and number, the best first.

    Indexes are used where they exist.

    Args:
        store: Folder of the data set.
        shards: All its files.
        column: Column of the vectors that are compared.
        query: Unit vector, `(dim,)` float32.
        top: Number of rows.

    Raises:
        ValueError: If an index is damaged or of other rows.
    """
    found: list[tuple[float, str, int]] = []
    for split, of_split in _by_split(shards).items():
        if store.exists(index_path(split, column)):
            scores, numbers = _by_index(store, index_path(split, column), of_split[-1].end, query, top)
        elif found_in_lance := find_in_lance(store, split, column, query, top):
            vectors, numbers = found_in_lance
            scores = _with_length_1(vectors) @ query
        else:
            cosines = np.concatenate(
                [vectors @ query for shard in of_split for vectors in _unit_vectors(store, shard.path, column)]
            )
            numbers = np.argsort(-cosines, kind="stable")[:top]
            scores = cosines[numbers]
        found += [(float(score), split, int(number)) for score, number in zip(scores, numbers, strict=True)]
    return sorted(found, key=lambda each: (-each[0], each[1:]))[:top]


def summary_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of summaries: the model's and the adaptors'."""
    return [name for name in names if name.rpartition("/")[2] == SUMMARY]


def _by_split(shards: Sequence[Shard]) -> dict[str, list[Shard]]:
    splits: dict[str, list[Shard]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append(shard)
    return splits


def _by_index(store: Store, name: str, num_rows: int, query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and numbers of the nearest of a split's rows.

    Raises:
        ValueError: If the index is damaged or of other rows, since it would return wrong rows silently.
    """
    import faiss

    index: Any = None
    with store.reading(name) as path, suppress(RuntimeError):  # all that faiss raises
        index = faiss.read_index(str(path)) if hash_file(path) in read_sums(store).get(name, ()) else None
    if index is None or (index.d, index.ntotal) != (len(query), num_rows):
        raise ValueError(
            f"{str(store.full_name(name))!r} is not the index that was written for these rows. Remove it, or write it "
            "again with --index."
        )
    scores, numbers = index.search(query[None], top)
    is_there = (numbers[0] >= 0) & (numbers[0] < num_rows)  # an index with fewer rows fills up with -1
    return scores[0][is_there], numbers[0][is_there]


def _unit_vectors(store: Store, path: str, column: str) -> Iterator[np.ndarray]:
    """Yield the vectors of a column, `(num_rows, dim)` float32, of length 1 or 0, one group after the other."""
    scale = f"{column}{SCALE}"
    has_scale = scale in _schema(store, path).names
    for table in read_columns(store, path, [column, scale] if has_scale else [column]):
        lists = table.column(column).combine_chunks()
        numbers = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
        vectors = restored(numbers, table.column(scale).to_numpy() if has_scale else None)
        yield _with_length_1(vectors)


def _with_length_1(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `(num_rows, dim)` divided by their lengths; those of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _schema(store: Store, path: str) -> Any:
    from pyarrow.parquet import read_schema

    with naming_damaged(store, path), store.open(path) as file:
        return read_schema(file)


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        cosine: Cosine with the query.
        split: Split of the row.
        number: Number of the row in its split.
        row: Name of the image, and the columns that were copied from the source.
    """

    cosine: float
    split: str
    number: int
    row: dict[str, Any]


class FeatureFolder:
    """A finished data set of features.

    Args:
        folder: Folder that `radio extract` wrote, or its address.

    Raises:
        ValueError: If the folder is not a data set of features, or rows are missing.
    """

    def __init__(self, folder: Path | str) -> None:
        self.store = Store(folder, "folder")
        self.facts = read_manifest(self.store)
        self.shards = shards_of(self.store, self.facts)

    def column_names(self) -> list[str]:
        """Return the columns."""
        return _schema(self.store, self.shards[0].path).names

    def read(self, split: str, number: int) -> dict[str, Any]:
        """Return the columns of an image before its features, classes by name.

        A number that is no class, such as -1 for an unknown one, stays.
        """
        from datasets import ClassLabel, Features

        names = self.column_names()
        known = names[: names.index(next(name for name in names if name in (SUMMARY, MEAN_FEATURES)))]
        shard = next(each for each in self.shards if each.split == split and each.start <= number < each.end)
        index = number - shard.start
        for table in read_columns(self.store, shard.path, known):
            if index < table.num_rows:
                break
            index -= table.num_rows
        row = table.slice(index, 1).to_pylist()[0]
        for name, kind in Features.from_arrow_schema(_schema(self.store, shard.path)).items():
            if name in row and isinstance(kind, ClassLabel) and row[name] in range(len(kind.names)):
                row[name] = kind.int2str(row[name])
        return row


def search(settings: SearchSettings) -> list[Hit]:
    """Return the most similar images, the best first.

    Raises:
        ValueError: If the data set is not whole or from another checkpoint, the image cannot be decoded, the checkpoint
            has no text tower for a text, or the compared column was not extracted.
    """
    if settings.page is not None:
        check_page(settings.page, "page")
    data = FeatureFolder(settings.folder)
    model = _open_model(settings, data)
    column, query = _embed(settings, model, data.column_names())
    vector = normalize(query, dim=0)
    hits = nearest(data.store, data.shards, column, vector.numpy().astype(np.float32), settings.top)
    return [Hit(cosine, split, number, data.read(split, number)) for cosine, split, number in hits]


def to_table(hits: Sequence[Hit]) -> str:
    """Return hits as a Markdown table."""
    known = list(hits[0].row)
    rows = [
        [str(rank), f"{hit.cosine:.3f}", hit.split, *(plain_cell(str(hit.row[name])) for name in known)]
        for rank, hit in enumerate(hits, 1)
    ]
    return markdown(["", "cosine", "split", *known], rows, aligned=True)


def write_found_page(settings: SearchSettings, hits: Sequence[Hit]) -> None:
    """Write a page of the images found, beside the image that was searched.

    Raises:
        ValueError: If `data` are other images than those of the features.
        WriteError: If writing fails, for example on a full disk.
    """
    assert settings.page is not None
    assert settings.data is not None
    facts, query = read_manifest(Store(settings.folder)), settings.query
    stored = RowSettings(**facts["settings"])
    if stored.streaming:
        raise ValueError("`page` needs features of images that are not streamed. Leave it out.")
    names = [name for name in SourceSettings.model_fields if name not in ("data", "streaming")]
    splits = open_source(SourceSettings(data=settings.data, **{name: stored.to_dict()[name] for name in names}))
    if {name: split.state() for name, split in splits.items()} != facts["images"]:
        raise ValueError(f"`data` must be the images that the features are of, got {settings.data!r} with other ones.")
    rows = []
    if _is_image(query):
        rows.append(ImageRow("Searched", [_captioned(_read_image(Path(query)), query, "")]))
    found = []
    for hit in hits:
        name = str(hit.row[ID])
        found.append(_captioned(splits[hit.split].images[hit.number], name, f"{hit.cosine:.3f} {name}"))
    rows.append(ImageRow("Found", found))
    text = "The images whose summaries have the largest cosine with that of the query, the most similar first."
    write_page(settings.page, "Search", "", [Section(f"Similar to {Path(query).name}", text, rows=rows)])


def _captioned(image: Tensor, alt: str, caption: str) -> CaptionedImage:
    factor = min(1.0, SHOWN_PX / max(image.shape[1:]))
    shape = [max(1, round(side * factor)) for side in image.shape[1:]]
    return CaptionedImage(resize(image, shape, antialias=True), alt, caption)


def _open_model(settings: SearchSettings, data: FeatureFolder) -> RadioFeatures:
    stored = RowSettings(**data.facts["settings"])
    dtype = AUTOCAST_TYPES[stored.dtype]
    device = device_of_process(settings.device)
    model = RadioFeatures.open(
        settings.checkpoint, size_px=stored.size, device=device, dtype=dtype, tiles=tiles_of(stored)
    )
    if hash_of({"model": model.fingerprint()})[:16] != data.facts["model"]["weights and processor"]:
        raise ValueError(
            f"`checkpoint` must be the one that the features are of, got {str(settings.checkpoint)!r} with other "
            "weights or another processor."
        )
    return model


def _embed(settings: SearchSettings, model: RadioFeatures, columns: Sequence[str]) -> tuple[str, Tensor]:
    """Return the column that is compared, and the query's vector in its space."""
    query, adaptor, is_text = settings.query, settings.by, not _is_image(settings.query)
    if is_text:
        if not isinstance(model, TextModel):
            raise ValueError(
                f"`query` must be an image file where the checkpoint has no text tower, got {query!r}. "
                "`radio convert --text-tower` makes a checkpoint with one, for the demo's student "
                "`radio add-words`."
            )
        if adaptor not in (None, model.text_adaptor):
            raise ValueError(f"`by` must be {model.text_adaptor!r} for texts, got {adaptor!r}. Leave it out.")
        adaptor = model.text_adaptor
    column = SUMMARY if adaptor is None else f"{adaptor}/{SUMMARY}"
    if column not in columns:
        has = ", ".join(summary_columns(columns))
        raise ValueError(
            f"`folder` must hold the column {column!r} to be searched by it, got {has}. Extract again with "
            f"--adaptors {adaptor}."
        )
    if is_text and isinstance(model, TextModel):
        return column, model.embed_texts([query])[0]
    pixels = model.preprocess(_read_image(Path(query)))
    wanted = Wanted(adaptors=frozenset() if adaptor is None else frozenset([adaptor]))
    return column, encode_each(model, [pixels], wanted)[0][column]


def _is_image(query: str) -> bool:
    """Return whether a query is a file or has the suffix of an image."""
    return Path(query).suffix.lower() in IMAGE_SUFFIXES or os.path.isfile(query)  # a text may be too long for a path


def _read_image(path: Path) -> Tensor:
    try:
        return to_tensor(decode_rgb(EncodedImage(str(path), path), smallest_px=1))
    except UnusableImageError as error:
        raise ValueError(
            f"`query` must be an image that can be decoded, or a text, got {str(path)!r}: {error}."
        ) from error
