"""What evaluations ask of a model: its own preprocessing, and summary and dense features of a batch."""

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
        summary: `(num_images, summary_dim)`, or None where there is none.
        features: `(num_images, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: Tensor


class Encoding(NamedTuple):
    """What a model says about a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None where the model has none.
        features: `(batch, feature_dim, rows, cols)`.
        adaptors: The same of each adaptor that was asked for.
    """

    summary: Tensor | None
    features: Tensor
    adaptors: Mapping[str, FeaturePair] = {}


@runtime_checkable
class FeatureModel(Protocol):
    """A frozen model in eval mode. Everything else about a model is its own: tasks that need more ask for its class."""

    @property
    def name(self) -> str:
        """Its row in tables."""
        ...

    @property
    def patch_size(self) -> int:
        """Pixels of its input that make one cell of the dense features, in each direction."""
        ...

    @property
    def size_px(self) -> int:
        """Shorter side of the images that it sees unless told otherwise."""
        ...

    @property
    def max_size_px(self) -> int:
        """Largest side that it takes."""
        ...

    @property
    def runs_at_any_size(self) -> bool:
        """False where it takes images of its own size only."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def adaptor_names(self) -> Sequence[str]:
        """Adaptors that it can be asked for; empty for most models."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes when the answers may: weights, preprocessing, precision."""
        ...

    def preprocess(self, image: Tensor, size_px: int | None = None) -> Tensor:
        """Return what the network takes in of one image, `(3, height, width)`.

        Args:
            image: RGB, uint8 `(3, height, width)`.
            size_px: Shorter side to resize to. A square image becomes a square of exactly that side, so that places in
                the image and in the features correspond. None takes the model's own preprocessing, at `size_px` of the
                model, which may cut off borders or squeeze: dense tasks give a size.
        """
        ...

    def preprocessing(self, size_px: int | None = None) -> Callable[[Tensor], Tensor]:
        """Return `preprocess` at one size without the network: processes that prepare images are sent a copy."""
        ...

    def encode(self, pixels: Tensor, adaptors: Sequence[str] = ()) -> Encoding:
        """Return the answer to a batch of preprocessed images `(batch, 3, height, width)` on the model's device.

        Args:
            pixels: What `preprocess` returned, stacked.
            adaptors: Names of adaptors to run besides.
        """
        ...


@runtime_checkable
class TextModel(Protocol):
    """A `FeatureModel` whose summary, or that of one adaptor, lives in the space of texts."""

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
