"""Vectors of batches: one callable for `radio extract`, `datasets.map`, Ray Data, Daft and Spark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modeling_radio.checks_radio import check_choice, integer, optional, own_names
from modeling_radio.core.ranks import device_of_process
from modeling_radio.data.decoding import EncodedImage, UnusableImageError, decode_rgb, to_tensor
from modeling_radio.evaluation.data import ByNumber
from modeling_radio.evaluation.features import Wanted, encode_batches, encode_each
from modeling_radio.evaluation.models.radio import AUTOCAST_TYPES, RadioFeatures
from modeling_radio.extraction.columns import FEATURES, SUMMARY, stored
from modeling_radio.image_processing_radio import UNREADABLE, to_eight_bits
from modeling_radio.metrics.feature_model import TextModel
from modeling_radio.views_radio import ViewOptions


TEXTS = "texts"
COLUMNS = {SUMMARY: "image", FEATURES: "image", TEXTS: "text"}
"""Usual name of the column that is read for each kind of vector."""
BLANK = {"image": np.zeros((64, 64, 3), np.uint8), "text": "a"}


class Embedder:
    """Turns batches of images or texts into vectors.

    It is sent to other processes as its arguments alone: each opens the model in its first call.

    Args:
        checkpoint: Folder with config.json and weights, or Hub id.
        what: "summary", one vector for each image; "features", one for each patch; or "texts", one for each text.
        column: Column of the images or texts; by default "image" or "text".
        keep: Columns that are returned with the vectors, such as a path.
        adaptors: Adaptors whose vectors are returned too, or "all".
        size: Shorter side of the images in pixels; by default as the checkpoint's processor has it.
        vector_dtype: "float32" or "float16": type of the vectors.
        dtype: "float32", "bfloat16" or "float16": type in which the checkpoint computes.
        device: Device such as "cuda:1"; by default the first GPU, if there is one.
        tiles: Overlapping tiles in which it sees images; these keep their own size unless `size` is given.

    Raises:
        ValueError: If an argument has another value.

    Examples:
        >>> embedder = Embedder("runs/demo/final", adaptors=["dinov2-s-saliency"])
        >>> vectors = embedder({"image": [Image.open("photo.jpg")]})
        >>> vectors["summary"].shape, vectors["dinov2-s-saliency/summary"].shape
        ((1, 576), (1, 384))
    """

    def __init__(  # noqa: PLR0913  (as `radio extract` has them)
        self,
        checkpoint: str | Path,
        what: Literal["summary", "features", "texts"] = "summary",
        *,
        column: str | None = None,
        keep: Sequence[str] = (),
        adaptors: Sequence[str] = (),
        size: int | None = None,
        vector_dtype: Literal["float32", "float16"] = "float32",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        device: str | torch.device | None = None,
        tiles: ViewOptions | None = None,
    ) -> None:
        check_choice("what", what, COLUMNS)
        check_choice("vector_dtype", vector_dtype, ["float32", "float16"])
        check_choice("dtype", dtype, AUTOCAST_TYPES)
        optional(integer(1)).check("size", size)
        for_images = {"adaptors": bool(adaptors), "size": size is not None, "dtype": dtype != "float32"}
        for_images["tiles"] = tiles is not None
        for name in (name for name, is_given in for_images.items() if is_given and what == TEXTS):
            raise ValueError(f"`{name}` is about images, got `what={TEXTS!r}`. Leave it out.")
        try:
            self.device = None if device is None else torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"`device` must be a device such as 'cpu' or 'cuda:1', got {device!r}.") from error
        self.checkpoint, self.what, self.size, self.tiles = Path(checkpoint), what, size, tiles
        self.vector_dtype, self.dtype = vector_dtype, dtype
        self.column = COLUMNS[what] if column is None else column
        self.keep, self.adaptors = ((each,) if isinstance(each, str) else tuple(each) for each in (keep, adaptors))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "model"}

    @cached_property
    def model(self) -> RadioFeatures:
        """The model, which is opened here.

        Raises:
            ValueError: If it does not open, does not take images of `size`, or lacks an adaptor or the text tower.
        """
        model = RadioFeatures.open(
            self.checkpoint,
            size_px=self.size,
            device=device_of_process() if self.device is None else self.device,
            dtype=AUTOCAST_TYPES[self.dtype],
            teachers=self.adaptors,
            tiles=self.tiles,
        )
        self.adaptors = tuple(own_names("adaptors", self.adaptors, model.adaptor_names))
        for name in self.adaptors:
            check_choice("adaptors", name, [*model.adaptor_names, "all"])
        if self.what == TEXTS and not isinstance(model, TextModel):
            raise ValueError(
                f"`checkpoint` must have a text tower for {TEXTS!r}, got {str(self.checkpoint)!r} without one. "
                "`radio convert --text-tower` or `radio add-words` writes one that has."
            )
        return model

    @property
    def wanted(self) -> Wanted:
        """Outputs of the model that are read; opens it."""
        adaptors = self.model.adaptor_names if "all" in self.adaptors else self.adaptors
        return Wanted(self.what == FEATURES, frozenset(adaptors))

    def encode(
        self, images: ByNumber[Tensor], batches: Sequence[list[int]], num_workers: int = 0
    ) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the model's outputs for each image of each batch; see `encode_each`.

        Args:
            images: RGB, uint8 `(3, height, width)` of any sizes.
            batches: Numbers of images.
            num_workers: Processes that decode and resize images if there are many; 0 does it between passes.
        """
        return encode_batches(self.model, images, batches, self.wanted, size_px=self.size, num_workers=num_workers)

    def encode_stream(
        self, images: Any, batches: Iterable[list[Any]], num_workers: int = 0
    ) -> Iterator[list[dict[str, Tensor] | None]]:
        """Yield the model's outputs for each image of each batch; the batches are asked for while others are encoded.

        Args:
            images: Has pixels for what the batches hold, or None.
            batches: Numbers of images, or encoded images.
            num_workers: Processes that decode and resize images; 0 does it between passes.

        Returns:
            As `encode_each`; None for an image without pixels.
        """
        pixels_of = _PreprocessedSource(images, self.model.preprocessing(self.size))
        loader = DataLoader(pixels_of, batch_sampler=batches, collate_fn=list, num_workers=num_workers)
        for pixels in loader:
            usable = [each for each in pixels if each is not None]
            rows = iter(encode_each(self.model, usable, self.wanted))
            yield [None if each is None else next(rows) for each in pixels]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the vectors of a batch, and the columns to `keep`.

        Args:
            batch: Columns by name, lists or arrays of one length. Images are PIL images, the bytes of files, or arrays
                uint8 `(height, width)` or `(height, width, channels)` with 1, 3 or 4 channels.

        Returns:
            By the name `what`, for adaptors `ADAPTOR/what`, arrays: the summary `(batch, dim)`, features
            `(batch, rows, cols, dim)`, or a list of `(rows, cols, dim)` if these differ; unit vectors of texts
            `(batch, dim)`, to be compared with the summary of the folder's `text_adaptor`.

        Raises:
            ValueError: If a column is missing, an image cannot be decoded, a text is not a string, vectors are not
                finite, or an adaptor has no summary.
        """
        for name in (self.column, *self.keep):
            if name not in batch:
                argument = "column" if name == self.column else "keep"
                raise ValueError(f"`{argument}` must name a column of the batch, got {name!r}; it has {list(batch)}.")
        entries = list(batch[self.column])
        some = entries or [BLANK[COLUMNS[self.what]]]  # so that an engine's empty batch gets vectors of the same width
        vectors = self._texts(some) if self.what == TEXTS else self._images(some)
        return {name: batch[name] for name in self.keep} | {
            name: each[: len(entries)] for name, each in vectors.items()
        }

    def _texts(self, entries: list[Any]) -> dict[str, Any]:
        for number, entry in enumerate(entries):
            if not isinstance(entry, str):
                raise ValueError(f"`batch` must have texts in {self.column!r}, got {entry!r:.200} at index {number}.")
        assert isinstance(self.model, TextModel)
        return {TEXTS: stored(TEXTS, self.model.embed_texts(entries), self.vector_dtype)[0].numpy()}

    def _images(self, entries: list[Any]) -> dict[str, Any]:
        images = [_read_image(entry, f"{self.column!r} at index {number}") for number, entry in enumerate(entries)]
        rows = next(self.encode(images, [list(range(len(images)))]))
        vectors: dict[str, Any] = {}
        for prefix in ("", *(f"{name}/" for name in sorted(self.wanted.adaptors))):
            name = f"{prefix}{self.what}"
            if name not in rows[0]:
                raise ValueError(f"`adaptors` must name adaptors with a summary, got {prefix[:-1]!r}. Leave it out.")
            parts = [stored(name, row[name], self.vector_dtype)[0] for row in rows]
            if self.what == FEATURES:
                grids = [row[f"{prefix}grids"].tolist() for row in rows]
                parts = [part.unflatten(0, grid) for part, grid in zip(parts, grids, strict=True)]
            arrays = [part.numpy() for part in parts]
            vectors[name] = np.stack(arrays) if len({each.shape for each in arrays}) == 1 else arrays
        return vectors


class _PreprocessedSource(Dataset[Any]):
    def __init__(self, images: Any, preprocess: Callable[[Tensor], Tensor]) -> None:
        self.images, self.preprocess = images, preprocess

    def __getitem__(self, index: Any) -> Tensor | None:
        pixels = self.images[index]
        return None if pixels is None else self.preprocess(pixels)


def _read_image(entry: Any, where: str) -> Tensor:
    """Return an image as RGB, uint8 `(3, height, width)`, upright, on white where it is transparent."""
    try:
        if isinstance(entry, bytes):
            return to_tensor(decode_rgb(EncodedImage(where, entry), smallest_px=1))
        if isinstance(entry, np.ndarray) and entry.dtype == np.uint8:
            entry = Image.fromarray(entry[..., 0] if entry.ndim == 3 and entry.shape[-1] == 1 else entry)
        if isinstance(entry, Image.Image):
            return to_tensor(to_eight_bits(ImageOps.exif_transpose(entry)))
        raise UnusableImageError(f"{type(entry).__name__} is no PIL image, no bytes of a file and no uint8 array")
    except UNREADABLE as error:
        raise ValueError(f"`batch` must have images that can be decoded, got {where}: {error}.") from error
