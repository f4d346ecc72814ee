"""One way to ask pixels, a student, an adaptor or a teacher for features, so that all are measured alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_dtype
from tqdm import tqdm

from modeling_radio import RadioModel


RAW_PIXELS = "raw pixels"
"""Name of `pixel_extractor` in results."""


class FeaturePair(Protocol):
    """What an extractor returns: `TeacherOutput`, the model's output and an adaptor's output all fit."""

    @property
    def summary(self) -> Tensor | None: ...

    @property
    def features(self) -> Tensor: ...


FeatureExtractor = Callable[[Tensor], FeaturePair]
"""Maps RGB images in [0, 1], `(batch, 3, height, width)`, to a summary and a dense feature map.
A `Teacher` is one as it stands."""


class Features(NamedTuple):
    """Features of a set of images, float32 on the CPU.

    Attributes:
        summary: `(num_images, summary_dim)`, or None if the model has no summary.
        features: `(num_images, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: Tensor

    @property
    def mean_features(self) -> Tensor:
        """The dense features averaged over the image, `(num_images, feature_dim)`."""
        return self.features.mean(dim=(2, 3))


def backbone_extractor(model: RadioModel) -> FeatureExtractor:
    """Return an extractor of the backbone's own summary and features."""
    return partial(model, feature_format="NCHW", adaptor_names=[], return_dict=True)


def adaptor_extractor(model: RadioModel, name: str) -> FeatureExtractor:
    """Return an extractor of one adaptor's summary and features, which live in its teacher's space."""

    def extract(pixel_values: Tensor) -> FeaturePair:
        output = model(pixel_values, feature_format="NCHW", adaptor_names=[name], return_dict=True)
        return output.adaptors[name]

    return extract


def pixel_extractor(patch_size: int, summary_size_px: int = 32) -> FeatureExtractor:
    """Return the baseline that any model must beat: the pixels themselves.

    Args:
        patch_size: Side of a patch in pixels; a feature is the patch's raw pixels, which is exactly what a
            ViT's patch projection sees.
        summary_size_px: Side to which the whole image is shrunk for the summary. 32 is our choice, as CIFAR's
            images; on the demo's objects 4 to 64 px score alike.

    Returns:
        An extractor with `3 * summary_size_px**2` summary and `3 * patch_size**2` feature channels.
    """

    def extract(pixel_values: Tensor) -> Features:
        thumbnail = F.interpolate(pixel_values, (summary_size_px, summary_size_px), mode="bilinear", antialias=True)
        return Features(thumbnail.flatten(1), F.pixel_unshuffle(pixel_values, patch_size))

    return extract


@torch.no_grad()
def extract_features(
    extractor: FeatureExtractor,
    images: Tensor,
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    description: str | None = None,
) -> Features:
    """Run an extractor over a set of images in batches.

    Args:
        extractor: The model in eval mode, already on `device`.
        images: RGB, `(num_images, 3, height, width)`, uint8 or floats in [0, 1].
        batch_size: Images per forward pass.
        device: Where the forward pass runs.
        dtype: Autocast type such as `torch.bfloat16`; None computes in the model's own type.
        description: Label of the progress bar, which appears on terminals only; None hides it.

    Returns:
        Features of all images, float32 on the CPU.

    Raises:
        ValueError: If there are no images, they are not a batch of RGB images, or an answer is not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"`images` must be a non-empty (num_images, 3, height, width), got {tuple(images.shape)}.")
    device = torch.device(device)
    summaries, features = [], []
    # disable=None: tqdm hides itself where stderr is no terminal.
    batches = tqdm(images.split(batch_size), description, leave=False, disable=None if description else True)
    for batch in batches:
        pixel_values = to_dtype(batch.to(device), torch.float32, scale=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = extractor(pixel_values)
        if not all(answer.isfinite().all() for answer in (output.features, output.summary) if answer is not None):
            raise ValueError(f"The answers of {description or 'the model'} are not finite: nothing can be measured.")
        features.append(output.features.float().cpu())
        if output.summary is not None:
            summaries.append(output.summary.float().cpu())
    return Features(torch.cat(summaries) if summaries else None, torch.cat(features))
