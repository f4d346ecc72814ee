"""Interface of models in an evaluation: their own preprocessing, and summary and dense features of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class FeaturePair(Protocol):
    """Summary and dense features: `TeacherOutput`, a RADIO model's output and an adaptor's output all fit."""

    @property
    def summary(self) -> Tensor | None: ...

    @property
    def features(self) -> Tensor: ...


class Features(NamedTuple):
    """Summary and dense features of a set of images.

    Attributes:
        summary: `(num_images, summary_dim)`, or None if there is none.
        features: `(num_images, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: Tensor


class Encoding(NamedTuple):
    """Output of a model for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None if the model has none.
        features: `(batch, feature_dim, rows, cols)`.
        adaptors: Summary and features of the requested adaptors by name.
    """

    summary: Tensor | None
    features: Tensor
    adaptors: Mapping[str, FeaturePair] = {}


@runtime_checkable
class FeatureModel(Protocol):
    """A frozen model in eval mode. Tasks that need more than this check the model's class."""

    @property
    def name(self) -> str:
        """Name of its row in tables."""
        ...

    @property
    def patch_size(self) -> int:
        """Pixels of the input for each position of the dense features, in each direction."""
        ...

    @property
    def size_px(self) -> int:
        """Default shorter side of the images in pixels."""
        ...

    @property
    def max_size_px(self) -> int:
        """Largest side of the images in pixels."""
        ...

    @property
    def runs_at_any_size(self) -> bool:
        """False if the model takes images of its own size only."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    @property
    def adaptor_names(self) -> Sequence[str]:
        """Names of its adaptors; empty for most models."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes when the features may: weights, preprocessing, precision."""
        ...

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return the network's input for one image, `(3, height, width)`.

        Args:
            image: RGB, uint8 `(3, height, width)`.
            size_px: Shorter side to resize to. A square image becomes a square of exactly that side, so that positions
                in the image and in the features correspond. None takes the model's own preprocessing, at `size_px` of
                the model, which may cut off borders or squeeze; dense tasks give a size.
        """
        ...

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size without the network, so that worker processes can have a copy."""
        ...

    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return the output for a batch.

        Args:
            pixels: Preprocessed images on the model's device, `(batch, 3, height, width)`.
            adaptors: Names of adaptors to run.
        """
        ...


@runtime_checkable
class TextModel(Protocol):
    """A `FeatureModel` whose summary, or that of one adaptor, is in the space of texts."""

    @property
    def text_adaptor(self) -> str | None:
        """The adaptor whose summary is compared with texts; None for the model's own summary."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return a unit vector for each text, `(num_texts, text_dim)`, float32 on the CPU."""
        ...

    def embed_classes(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return a unit vector for each class, the mean over prompts, `(num_classes, text_dim)`, float32 on the CPU.

        Args:
            class_names: At least one.
            templates: Prompts with the placeholder `{}`.
        """
        ...
