"""The base class of the teachers: frozen networks that resize and normalise on their own.

To add a teacher, write a subclass (about 30 lines) and enter it into `TEACHER_KINDS` in
`training/teachers/__init__.py`:

    class MyTeacher(Teacher):
        image_mean, image_std = IMAGENET_MEAN, IMAGENET_STD

        def __init__(self, name: str, *, source: str | None, layer: int = 11):
            super().__init__(name, summary_dim=384, feature_dim=384, patch_size=14)
            self.network = load_my_network(source, layer)
            self.freeze()

        def encode(self, pixel_values: Tensor) -> TeacherOutput:
            tokens = self.network(pixel_values)  # (batch, 1 + rows * cols, 384)
            return TeacherOutput(tokens[:, 0], tokens_to_map(tokens[:, 1:], pixel_values, 14))

A recipe then names it by its kind. Every keyword of the constructor is an option of the recipe; a misspelt
one is refused.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

DEFAULT_GRID_STRIDE = 16  # the patch size of every released student but one, https://arxiv.org/abs/2601.17237
Precision = Literal["float32", "bfloat16"]


class TeacherOutput(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None where the teacher has no summary.
        features: `(batch, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: Tensor


class Teacher(nn.Module):
    """Base class of the teachers: frozen, always in eval mode, never building a graph.

    How it runs: an image of `height x width` pixels is answered on a grid of `height / grid_stride` by
    `width / grid_stride` cells. At its native size (`input_size=None`) the teacher sees the image resized to
    `rows * patch_size` by `cols * patch_size` pixels, rounded up to `size_multiple`; at a fixed size it sees
    `input_size x input_size`. Features that come out on another grid are resampled.

    Args:
        name: Name of the teacher: the adaptor's name in the config, the checkpoint and the logs.
        summary_dim: Width of the summary, None where there is none.
        feature_dim: Width of the features.
        patch_size: Pixels of the teacher's own input that make one feature cell.
        only_input_size: Side of the one square that the network can run at, pixels; None where it runs at any size.

    Attributes:
        image_mean: Mean that the network was trained with, RGB of pixels in [0, 1].
        image_std: Standard deviation likewise.
        size_multiple: The network's input sides must be multiples of it; None means `patch_size`.
        is_convolutional: The network runs in channels-last layout, about twice as fast on CPUs.
    """

    image_mean: ClassVar[tuple[float, float, float]]
    image_std: ClassVar[tuple[float, float, float]]
    size_multiple: ClassVar[int | None] = None
    is_convolutional: ClassVar[bool] = False

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        summary_dim: int | None,
        feature_dim: int,
        patch_size: int,
        only_input_size: int | None = None,
    ):
        super().__init__()
        self.name = name
        self.summary_dim = summary_dim
        self.feature_dim = feature_dim
        self.patch_size = patch_size
        self.only_input_size = only_input_size
        self.register_buffer("mean", torch.tensor(self.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.image_std).view(1, 3, 1, 1))
        self.set_run_mode()

    def set_run_mode(
        self,
        *,
        grid_stride: int = DEFAULT_GRID_STRIDE,
        input_size: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Set how the teacher runs.

        Args:
            grid_stride: Pixels of the given image that make one cell of the answer: the student's patch size.
            input_size: Side of the square that the teacher sees, pixels; None for the native size, or for the only
                size that the network can run at.
            precision: "bfloat16" runs the network under autocast; outputs are float32 either way.

        Raises:
            ValueError: If a number is not positive, the size does not fit the network, or the precision is
                unknown.
        """
        if grid_stride < 1:
            raise ValueError(f"teacher {self.name!r}: grid_stride must be positive, not {grid_stride}")
        if self.only_input_size is not None and input_size not in (None, self.only_input_size):
            raise ValueError(
                f"teacher {self.name!r}: it runs at {self.only_input_size} px only, not at input_size {input_size}"
            )
        multiple = self.size_multiple or self.patch_size
        if input_size is not None and (input_size < 1 or input_size % multiple):
            nearest = max(1, round(input_size / multiple)) * multiple
            raise ValueError(
                f"teacher {self.name!r}: input_size {input_size} is not a multiple of {multiple}; "
                f"the nearest is {nearest}"
            )
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"teacher {self.name!r}: precision must be float32 or bfloat16, not {precision!r}")
        self.grid_stride = grid_stride
        self.input_size = input_size or self.only_input_size
        self.precision = precision

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Run the network.

        Args:
            pixel_values: Normalised RGB, `(batch, 3, height, width)`, sides multiples of `size_multiple`.

        Returns:
            Summary and features on the network's own grid, any float type.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the teacher's summary and features, float32.

        Args:
            pixel_values: RGB in [0, 1], `(batch, 3, height, width)`, sides multiples of `grid_stride`.

        Raises:
            ValueError: If the sides are not multiples of `grid_stride`.
        """
        rows, cols = self._grid(pixel_values)
        resized = resize_images(pixel_values, self._run_size(rows, cols))
        normalised = (resized - self.mean) / self.std
        if self.is_convolutional:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        use_bfloat16 = self.precision == "bfloat16"
        with torch.autocast(pixel_values.device.type, dtype=torch.bfloat16, enabled=use_bfloat16):
            summary, features = self.encode(normalised)
        features = resample_features(features.float(), rows, cols)
        return TeacherOutput(None if summary is None else summary.float(), features.contiguous())

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode and frozen: a teacher has no training mode."""
        self.requires_grad_(False)
        return super().train(False)

    def freeze(self) -> Teacher:
        """Freeze the network after it was built."""
        if self.is_convolutional:
            self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
        return self.train(False)

    def describe(self) -> str:
        """Return one line: normalisation, patch, widths and how the teacher runs."""
        size = "native size" if self.input_size is None else f"{self.input_size} px, features resampled"
        return (
            f"{self.name}: {type(self).__name__}, patch {self.patch_size}, summary {self.summary_dim}, "
            f"features {self.feature_dim}, one cell per {self.grid_stride} px, {size}, {self.precision}"
        )

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        height, width = pixel_values.shape[-2:]
        if height % self.grid_stride or width % self.grid_stride:
            raise ValueError(
                f"teacher {self.name!r}: image size {height} x {width} is not a multiple of its grid_stride "
                f"{self.grid_stride}"
            )
        return height // self.grid_stride, width // self.grid_stride

    def _run_size(self, rows: int, cols: int) -> tuple[int, int]:
        if self.input_size is not None:
            return self.input_size, self.input_size
        multiple = self.size_multiple or self.patch_size
        height, width = (math.ceil(cells * self.patch_size / multiple) * multiple for cells in (rows, cols))
        return height, width


def resize_images(pixel_values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images resized to `size`, bicubic and antialiased, clipped to [0, 1]."""
    if tuple(pixel_values.shape[-2:]) == size:
        return pixel_values
    return F.interpolate(pixel_values, size, mode="bicubic", antialias=True).clamp(0, 1)


def resample_features(features: Tensor, rows: int, cols: int) -> Tensor:
    """Return features on a grid of `rows x cols`, resampled (bilinear, antialiased) from another grid."""
    if tuple(features.shape[-2:]) == (rows, cols):
        return features
    return F.interpolate(features, (rows, cols), mode="bilinear", antialias=True)


def tokens_to_map(tokens: Tensor, pixel_values: Tensor, patch_size: int) -> Tensor:
    """Return patch tokens `(batch, rows * cols, dim)` of these images as a map `(batch, dim, rows, cols)`."""
    rows, cols = pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size
    return tokens.transpose(1, 2).unflatten(2, (rows, cols))
