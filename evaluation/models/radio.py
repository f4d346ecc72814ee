"""RADIO models as models of an evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.checks_radio import Resolution, check_multiple, own_name
from modeling_radio.core.opening import find_model, open_model, read_config, tensor_fingerprint
from modeling_radio.core.settings import TileOptions
from modeling_radio.image_processing_radio import OWN_SIZE
from modeling_radio.inputs_radio import WindowSize
from modeling_radio.metrics.feature_model import Encoding, FeatureModel, TextModel
from modeling_radio.metrics.results import STUDENT
from modeling_radio.nvidia.beside import adaptors_lacking
from modeling_radio.radseg_radio import DENOISING, SCALING, SLIDING
from modeling_radio.views_radio import ViewOptions, encode_tiles
from modeling_radio.zero_shot_radio import DenseSource


AUTOCAST_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Autocast types by name; None computes in the model's own type."""
_Own = TypeVar("_Own", bound="RadioFeatures")


def tiles_of(settings: TileOptions) -> ViewOptions | None:
    """Return the tiles that settings ask for."""
    return None if settings.tile_size is None else ViewOptions(settings.tile_size, settings.tile_overlap)


class RadioFeatures:
    """A RADIO model: its summary, its dense features, and those of its adaptors.

    Args:
        model: Model in eval mode, on its device.
        processor: Image processor; None takes the one that fits the model.
        name: Name of its row in tables.
        size_px: Shorter side of the images; None takes the processor's.
        dtype: Autocast type such as `torch.bfloat16`; None computes in the model's own type.
        tiles: Overlapping tiles in which it sees images; these keep their own size unless `size_px` is given.

    Raises:
        ValueError: If the model does not take images of `size_px`, or tiles of their size.
    """

    def __init__(
        self,
        model: RadioModel,
        processor: RadioImageProcessor | None = None,
        *,
        name: str = STUDENT,
        size_px: int | None = None,
        dtype: torch.dtype | None = None,
        tiles: ViewOptions | None = None,
    ) -> None:
        self.model, self.name, self.dtype, self.tiles = model, name, dtype, tiles
        if tiles is not None:
            tiles.tiles(model.config, Resolution(1, 1))  # refuses a size that does not fit
        self.num_tokens: int | None = None
        self.truncate_dim: int | None = None
        self.processor = RadioImageProcessor.from_model_config(model.config) if processor is None else processor
        self._set_size(size_px)

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        teachers: Collection[str] = (),
        **options: Any,
    ) -> RadioFeatures:
        """Return the backbone of a checkpoint, which embeds texts too if the folder has a text tower.

        Args:
            source: See `modeling_radio.core.opening.open_model`.
            device: Where it runs.
            teachers: Teachers whose adaptors are wanted; those that NVIDIA's release lacks are left out.
            options: Further arguments of the class.

        Raises:
            ValueError: As `open_model`, or if it does not take images of `size_px`.
        """
        folder = find_model(source)
        lacking = adaptors_lacking(folder)
        wanted = {own_name(name, lacking) for name in teachers}
        adaptors = [name for name in lacking if name in wanted]
        opened = open_model(folder, device=device, dtype=None, adaptors=adaptors, as_backbone=True)
        if read_config(folder).get("text_tower") is not None:
            return RadioTextFeatures(opened.folder, opened.backbone, opened.processor, **options)
        return RadioFeatures(opened.backbone, opened.processor, **options)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model.patch_size

    @property
    def size_px(self) -> int:
        """Shorter side of the images in pixels; the preferred resolution if the processor bounds something else."""
        if self._size_px is not None:
            return self._size_px
        size = self.processor.size
        sides = [size[key] for key in ("shortest_edge", "height", "width") if size[key] is not None]
        return min(sides, default=min(self.model.preferred_resolution))

    @property
    def max_size_px(self) -> int:
        """Largest side of the images in pixels."""
        return self.model.config.largest_side

    @property
    def runs_at_any_size(self) -> bool:
        """Always True."""
        return True

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def adaptor_names(self) -> tuple[str, ...]:
        """Names of the adaptors."""
        return tuple(self.model.radio_model.adaptors)

    def fingerprint(self) -> str:
        """Return a hash of weights, configuration, processor and precision."""
        weights = tensor_fingerprint(*self.model.state_dict().values())
        parts = [
            weights,
            self.model.config.to_json_string(),
            self.processor.to_json_string(),
            self._size_px,
            self.dtype,
        ]
        if self.tiles is not None:
            parts.append(str(self.tiles))
        counts = {"tokens": self.num_tokens, "channels": self.truncate_dim}
        return " ".join(map(str, [*parts, *(f"{count} {of}" for of, count in counts.items() if count is not None)]))

    def with_size(self: _Own, size_px: int | None) -> _Own:
        """Return the same model for images of another size.

        Args:
            size_px: Shorter side of the images; None takes the processor's.

        Raises:
            ValueError: If the model does not take images of `size_px`.
        """
        other = copy.copy(self)
        other._set_size(size_px)
        return other

    def _set_size(self, size_px: int | None) -> None:
        if size_px is not None:
            largest = self.model.config.largest_side if self.tiles is None else size_px
            check_multiple("`size`", size_px, size_px, self.model.min_resolution_step, largest)
        self._size_px = size_px

    def with_tokens(self: _Own, num_tokens: int) -> _Own:
        """Return the same RADIO1D with another number of global tokens."""
        shorter = copy.copy(self)
        shorter.num_tokens = num_tokens
        return shorter

    def truncated(self: _Own, truncate_dim: int) -> _Own:
        """Return the same model whose features, and each class token of whose summary, have their first channels.

        Raises:
            ValueError: If there are not so many, or the summary is of no class tokens.
        """
        config = self.model.config
        if config.is_foreign or truncate_dim > config.hidden_size:
            what = "None for a network without class tokens" if config.is_foreign else f"at most {config.hidden_size}"
            raise ValueError(f"`truncate_dim` must be {what}, got {truncate_dim}.")
        narrower = copy.copy(self)
        narrower.truncate_dim = truncate_dim
        return narrower

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return the pixels of an image by the processor; the ratio of its sides stays, up to whole patches."""
        return self.preprocessing(size_px)(image)

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size."""
        size_px = self._size_px if size_px is None else size_px
        options: dict[str, Any] = {} if self.tiles is None else {**OWN_SIZE}
        if size_px is not None:
            options["size"] = {"shortest_edge": size_px}
        return partial(_processed, processor=self.processor, options=options)

    def encode(self, pixels: Tensor, adaptors: Sequence[str] = (), *, window_size: WindowSize = None) -> Encoding:
        """Return the backbone's own summary and features, and those of adaptors in the spaces of their teachers.

        Args:
            pixels: Preprocessed images, `(batch, 3, height, width)`.
            adaptors: Names of adaptors to run.
            window_size: Side of ViTDet windows in tokens, or "global"; None takes the configuration's.
        """
        run = partial(
            self.model,
            window_size=window_size,
            feature_format="NCHW",
            adaptor_names=list(adaptors),
            return_dict=True,
            num_tokens=self.num_tokens,
        )
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype is not None):
            tiles = self.tiles
            output: Any = run(pixels) if tiles is None else encode_tiles(self.model.config, pixels, run, tiles)
        summary, features = output.summary, cast(Tensor, output.features)
        if self.truncate_dim is not None:
            tokens = summary.unflatten(1, (-1, self.model.config.hidden_size))
            summary, features = tokens[:, :, : self.truncate_dim].flatten(1), features[:, : self.truncate_dim]
        return Encoding(summary, features, output.adaptors or {})

    def encode_blocks(self, pixels: Tensor) -> list[Tensor]:
        """Return the patches of the blocks at the end of each quarter, with the final norm, `(batch, dim, rows, cols)`.

        These are the blocks of Probe3D's probes, https://arxiv.org/abs/2404.08636.

        Raises:
            ValueError: If there are fewer than four blocks.
        """
        depth = self.model.config.num_hidden_layers
        if depth < 4:
            raise ValueError(f"Probes of four blocks need a model with at least four, {self.name!r} has {depth}.")
        blocks = [depth // 4 - 1, depth // 2 - 1, depth // 4 * 3 - 1, depth - 1]
        with torch.autocast(pixels.device.type, self.dtype, enabled=self.dtype is not None):
            maps = self.model.forward_intermediates(pixels, blocks, norm=True, intermediates_only=True)
        return [each[:, : self.truncate_dim] for each in maps]


def _processed(image: Tensor, processor: RadioImageProcessor, options: Mapping[str, Any]) -> Tensor:
    return processor(image, return_tensors="pt", **options)["pixel_values"][0]


@runtime_checkable
class PatchTextModel(TextModel, FeatureModel, Protocol):
    """A `FeatureModel` whose patches can be compared with texts."""

    def segment(
        self, pixels: Tensor, vocabularies: Sequence[Tensor], source: DenseSource, options: Mapping[str, Any]
    ) -> list[Tensor]:
        """Return similarities of patches and texts, for each vocabulary `(batch, num_texts, rows, cols)`.

        The network runs once for all of them.

        Args:
            pixels: Preprocessed images, as for `encode`.
            vocabularies: Vectors of the texts of each, see `embed_classes`.
            source: See `RadioForZeroShotImageClassification.segment`.
            options: RADSeg's steps, arguments of the same method; those that are not given keep its defaults.
        """
        ...


class RadioTextFeatures(RadioFeatures):
    """A RADIO folder with a text tower, whose texts are in the space of one adaptor's summary.

    Args:
        folder: Folder by `radio convert --text-tower`.
        model: As for `RadioFeatures`, like the other arguments.
    """

    def __init__(
        self, folder: Path, model: RadioModel, processor: RadioImageProcessor | None = None, **options
    ) -> None:
        super().__init__(model, processor, **options)
        self.folder = folder
        self.text_adaptor = str(read_config(folder).get("text_adaptor"))
        self._tower: tuple[RadioForZeroShotImageClassification, PreTrainedTokenizerBase] | None = None

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return a unit vector for each class, the mean over prompts, `(num_classes, text_dim)`."""
        model, tokenizer = self._text_tower()
        return model.embed_classes(tokenizer, class_names, templates).float().cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return a unit vector for each text, `(num_texts, text_dim)`."""
        model, tokenizer = self._text_tower()
        return model.embed_texts(tokenizer, texts).float().cpu()

    def segment(
        self, pixels: Tensor, vocabularies: Sequence[Tensor], source: DenseSource, options: Mapping[str, Any]
    ) -> list[Tensor]:
        """Return similarities of patches and texts (see `PatchTextModel`)."""
        model = self._text_tower()[0]
        steps: dict[str, Any] = {"scra": "auto", "scga": SCALING, "sliding": SLIDING, "denoising": DENOISING, **options}
        denoising = steps.pop("denoising")
        patches = model.aligned_patches(pixels, source, **steps)
        return [model.compare_patches(patches, texts, denoising) for texts in vocabularies]

    def _text_tower(self) -> tuple[RadioForZeroShotImageClassification, PreTrainedTokenizerBase]:
        if self._tower is None:
            opened = open_model(self.folder, device=self.device, dtype=None)
            assert isinstance(opened.model, RadioForZeroShotImageClassification)
            assert opened.tokenizer is not None  # each such model has one
            self._tower = opened.model, opened.tokenizer
        return self._tower
