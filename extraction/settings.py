"""Settings of `radio extract` and `radio search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.settings import (
    DeviceOptions,
    DtypeOptions,
    Problem,
    SettingsError,
    TileOptions,
)
from modeling_radio.data.settings import ImageSourceOptions


NUM_IMAGES, NUM_DENSE_IMAGES = 1000, 100
"""Our choice of images a file, without and with dense features: those of a ViT-H at 512 px are 260 MB in float16."""


class SourceSettings(ImageSourceOptions):
    """Settings of the images.

    Attributes:
        data: Folder of images, with or without sub-folders for classes and splits; `.parquet` or `.tar` files, a
            pattern or a folder of them, also at an address such as s3://bucket/folder; a data set that `datasets`
            saved; one of the Hub, `ORG/NAME`; or demo.
        streaming: Read `.parquet` or `.tar` files in order, without a copy and with little memory, and write a file
            for each of them.
        keep: Columns to copy, such as label; by default the classes, if there are several.
    """

    data: str
    keep: list[str] | None = None


class StorageSettings(TileOptions, DtypeOptions):
    """Settings of the stored features.

    Attributes:
        adaptors: Adaptors whose outputs are stored beside the backbone's, or "all".
        dense: Whether to store the features of all patches, also of the adaptors.
        pool: Side of the squares of patches whose mean is stored.
        pca: Number of principal components that replace dense features; they are computed from a seeded choice of
            images.
        vector_dtype: Type of all vectors; int8 stores a scale for each vector too.
        size: Shorter side of the images in pixels; by default as the checkpoint's processor has it.
        shard_images: Images for each file; by default 1000, with dense features 100.
    """

    adaptors: list[str] = []
    dense: bool = False
    pool: int = Field(1, gt=0)
    pca: int | None = Field(None, gt=0)
    vector_dtype: Literal["float32", "float16", "int8"] = "float32"
    size: int | None = Field(None, gt=0)
    shard_images: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check_dense(self) -> StorageSettings:
        """Refuse choices about dense features where none are stored."""
        defaults = {"pool": 1, "pca": None}
        chosen = [name for name, default in defaults.items() if getattr(self, name) != default]
        text = "`{path}` is about dense features, which are not stored: add --dense."
        if chosen and not self.dense:
            raise SettingsError(*(Problem((name,), text) for name in chosen))
        return self

    @property
    def images_of_shard(self) -> int:
        """Images for each file."""
        return self.shard_images or (NUM_DENSE_IMAGES if self.dense else NUM_IMAGES)


class ExtractionSettings(SourceSettings, StorageSettings, DeviceOptions):
    """Settings of an extraction.

    Attributes:
        checkpoint: Folder with config.json and weights, or Hub id.
        output: Folder of the data set, or its address such as s3://bucket/features; an unfinished one of the same
            settings is completed, also by several such commands at once.
        format: "lance" writes the rows once more for Lance, with an index for searching more vectors than fit in
            memory.
        index: Write an index for searching with `faiss`: "flat" compares with every vector, "hnsw" is faster on
            millions and may miss some.
        model_id: ORG/NAME of the checkpoint on the Hub, for the card.
        batch_size: Images for each pass.
        num_workers: Processes that decode images where there are many.
        engine: "daft" lets Daft start the workers: on this machine, or on a Ray cluster with `DAFT_RUNNER=ray`.
        engine_workers: Workers that Daft starts, each with a GPU if this machine has one.
    """

    checkpoint: ModelFolder
    output: Path | str
    format: Literal["parquet", "lance"] = "parquet"
    index: Literal["flat", "hnsw"] | None = None
    model_id: str | None = None
    batch_size: int = Field(32, gt=0)
    num_workers: int = Field(2, ge=0)
    engine: Literal["daft"] | None = None
    engine_workers: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _check_bases(self) -> ExtractionSettings:
        if self.streaming and self.pca is not None:
            text = "`{path}` is computed from a choice of all images, which a stream does not know: leave it out."
            raise SettingsError(Problem(("pca",), text))
        return self

    @model_validator(mode="after")
    def _check_format(self) -> ExtractionSettings:
        if self.format == "lance" and self.vector_dtype == "int8":
            text = "`{path}` searches no int8 vectors: take another type (`vector_dtype`), or leave it out."
            raise SettingsError(Problem(("format",), text))
        return self

    def of_rows(self) -> dict[str, Any]:
        """Return the settings that decide the content of the rows, for the manifest."""
        decisive = {*SourceSettings.model_fields, *StorageSettings.model_fields} - {"data", "streaming"}
        values = {name: value for name, value in self.to_dict().items() if name in decisive}
        if not self.streaming:
            return values | {"shard_images": self.images_of_shard}
        return values | {"streaming": True}


class SearchSettings(DeviceOptions):
    """Settings of a search.

    Attributes:
        folder: Data set that `radio extract` wrote: its folder or address.
        query: An image file or a text.
        checkpoint: Folder of the checkpoint that the features are of.
        by: Adaptor whose summaries are compared; by default the model's own, for texts the text tower's.
        top: Number of images to list.
        page: HTML file that shows the images found; needs `data`.
        data: The images that the features are of, as `radio extract` got them.
    """

    folder: Path | str
    query: str
    checkpoint: ModelFolder
    by: str | None = None
    top: int = Field(10, gt=0)
    page: Path | None = None
    data: str | None = None

    @model_validator(mode="after")
    def _check_page(self) -> SearchSettings:
        if self.page is not None and self.data is None:
            raise SettingsError(Problem(("page",), "`{path}` shows images, which lie in the source: add --data."))
        return self
