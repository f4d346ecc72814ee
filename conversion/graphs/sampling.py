"""Bilinear sampling by plain gathers, in place of the operator GridSample of ONNX.

The decoder of detectors samples its maps (deformable attention). lightly-train 0.17.0 reports that TensorRT computes
GridSample there wrongly, without an error, and exports gathers instead, as this does.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


_GRID_SAMPLE = inspect.signature(F.grid_sample)


class GatheredSamples(TorchFunctionMode):
    """While it is active, `F.grid_sample` with bilinear weights and zeros outside is `gather_samples`."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.grid_sample:
            call = _GRID_SAMPLE.bind(*args, **(kwargs or {}))
            call.apply_defaults()
            images, points, mode, padding_mode, is_aligned = call.arguments.values()
            if (mode, padding_mode, bool(is_aligned), images.ndim) == ("bilinear", "zeros", False, 4):
                return gather_samples(images, points)
        return func(*args, **(kwargs or {}))


def gather_samples(images: Tensor, points: Tensor) -> Tensor:
    """Return images at points between their pixels, as `F.grid_sample` does without aligned corners.

    Args:
        images: `(batch, channels, height, width)`.
        points: `(batch, rows, cols, 2)`, x and y, from -1 to 1 over the image.

    Returns:
        `(batch, channels, rows, cols)`; pixels outside of the image count as zeros.
    """
    height, width = images.shape[2:]
    x = points[..., 0] * (width / 2) + (width - 1) / 2
    y = points[..., 1] * (height / 2) + (height - 1) / 2
    left, top = x.floor(), y.floor()
    x_shares, y_shares = (1 - (x - left), x - left), (1 - (y - top), y - top)
    flat = images.flatten(2)
    sampled = torch.zeros_like(flat[:, :, :1, None])
    for row, y_share in zip((top, top + 1), y_shares, strict=True):
        for col, x_share in zip((left, left + 1), x_shares, strict=True):
            is_inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
            # No clamps: onnxscript makes a graph of them that onnxruntime refuses.
            positions = torch.where(is_inside, row * width + col, 0.0).long()
            index = positions.flatten(1)[:, None].expand(-1, flat.shape[1], -1)
            pixels = flat.gather(2, index).unflatten(2, positions.shape[1:])
            sampled = sampled + pixels * (x_share * y_share * is_inside)[:, None]
    return sampled
