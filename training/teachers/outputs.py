"""Outputs of a teacher, their checks, and the resizing of images and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F


class TeacherOutput(NamedTuple):
    """Output of a teacher for a batch.

    Attributes:
        summary: `(batch, summary_dim)`, or None where the teacher has no summary.
        features: `(batch, feature_dim, rows, cols)`.
    """

    summary: Tensor | None
    features: Tensor


class TeacherShape(Protocol):
    """The widths of a teacher, which decide those of the student's heads; None without a summary."""

    summary_dim: int | None
    feature_dim: int


@dataclass
class TeacherWidths:
    """A `TeacherShape` alone, for a process that has not loaded the teacher."""

    summary_dim: int | None
    feature_dim: int


def teacher_error(name: str, message: str) -> ValueError:
    """Return an error that names the teacher before its message."""
    return ValueError(f"Teacher {name!r}: {message}")


def check_teacher_output(found: object, name: str, shape: TeacherShape) -> TeacherOutput:
    """Refuse an output of other widths than the teacher's, because the student's heads and the statistics have these.

    Args:
        found: The output of `encode`.
        name: The teacher's name.
        shape: Its widths.

    Raises:
        ValueError: If it is no pair of summary and features, or one of them has another type or width.
    """
    if not (isinstance(found, tuple) and len(found) == 2):
        raise teacher_error(name, f"`encode` must return a pair of summary and features, got {_describe(found)}.")
    summary, features = found
    if not (_is_floating(features) and features.ndim == 4 and features.shape[1] == shape.feature_dim):
        rule = f"features of floats, (batch, {shape.feature_dim}, rows, columns)"
        raise teacher_error(name, f"`encode` must return {rule}, got {_describe(features)}.")
    if shape.summary_dim is None:
        is_summary, rule = summary is None, "None for its missing summary"
    else:
        is_summary = _is_floating(summary) and summary.shape[1:] == (shape.summary_dim,)
        rule = f"a summary of floats, (batch, {shape.summary_dim})"
    if not is_summary:
        raise teacher_error(name, f"`encode` must return {rule}, got {_describe(summary)}.")
    return TeacherOutput(summary, features)


def _is_floating(found: object) -> TypeGuard[Tensor]:
    return isinstance(found, Tensor) and found.is_floating_point()


def _describe(found: object) -> str:
    return f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


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


def longest_list(network: nn.Module) -> Sequence[nn.Module]:
    """Return the longest list of modules of one class in a network: the blocks of a transformer; none without lists."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    alike = [list(each) for each in lists if len({type(block) for block in each}) == 1]
    return max(alike, key=len, default=[])
