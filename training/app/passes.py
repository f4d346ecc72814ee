"""Passes of a model over one photograph: features of backbone and teachers' spaces, timed, kept for the next click."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_radio.resolution_radio import check_multiple, largest_side
from modeling_radio.window_choice_radio import WindowSize, check_window_size
from training.app.opening import Opened


BACKBONE = "backbone"
OWN_WINDOWS, NO_WINDOWS, AUTOMATIC = "the checkpoint's", "off", "auto"
"""Windows that are no number of patches, as they are chosen in the app."""
KEPT_PASSES = 2
"""Our choice: the photograph that is looked at and the one before; features of a ViT-H at 2048 px are 300 MB."""


@dataclass(frozen=True)
class Pass:
    """What a model made of one photograph.

    Attributes:
        maps: Dense features of "backbone" and of each teacher's adaptor, `(1, dim, rows, cols)`, float32 on the CPU.
        size: Height and width of what the network saw, in pixels.
        milliseconds: Of the network's pass with all adaptors.
    """

    maps: dict[str, Tensor]
    size: tuple[int, int]
    milliseconds: float

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, cols = self.maps[BACKBONE].shape[-2:]
        return rows, cols


def read_window(text: str) -> WindowSize:
    """Return a window as it is chosen in the app for the models' `window_size`.

    Raises:
        ValueError: If it is none.
    """
    named: dict[str, WindowSize] = {OWN_WINDOWS: None, NO_WINDOWS: "global", AUTOMATIC: "auto"}
    text = str(text).strip()
    if text in named:
        return named[text]
    if not text.isdecimal():
        raise ValueError(f"`windows` must be a number of patches or one of {list(named)}, got {text!r}.")
    check_window_size(int(text))
    return int(text)


def make_pixels(opened: Opened, photograph: Tensor, size_px: int) -> Tensor:
    """Return what the network sees of a photograph, `(1, 3, height, width)` on its device and in its type.

    Args:
        opened: The model.
        photograph: uint8 `(3, height, width)`.
        size_px: Shorter side in pixels, but of a photograph that would be longer than the model takes.

    Raises:
        ValueError: If the model does not take such a size.
    """
    config = opened.model.config
    longest = largest_side(config)
    check_multiple("`resolution`", size_px, size_px, config.resolution_step, longest)
    size = {"shortest_edge": size_px, "longest_edge": longest}
    pixels = opened.processor(photograph, size=size, do_pad=False, return_tensors="pt")["pixel_values"]
    return pixels.to(opened.model.device, opened.model.dtype)


@torch.inference_mode()
def time_backbone(
    opened: Opened, pixels: Tensor, window: WindowSize, adaptors: Sequence[str] = ()
) -> tuple[dict[str, Tensor], float]:
    """Return dense maps of the backbone and of adaptors as of `Pass`, and milliseconds of the pass."""
    start = _now(pixels.device)
    output = opened.backbone(
        pixels, window_size=window, adaptor_names=list(adaptors), feature_format="NCHW", return_dict=True
    )
    milliseconds = 1000 * (_now(pixels.device) - start)
    maps = {BACKBONE: output.features, **{name: output.adaptors[name].features for name in adaptors}}
    return {name: each.float().cpu() for name, each in maps.items()}, milliseconds


class Passes:
    """Runs a model on photographs and keeps the last answers, for clicks on one photograph ask for them again."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._kept: OrderedDict[tuple[str, int, WindowSize], Pass] = OrderedDict()

    def run(self, photograph: Tensor, size_px: int, window: WindowSize) -> Pass:
        """Return the dense features of a photograph; arguments as of `make_pixels` and of `RadioModel.forward`.

        Raises:
            ValueError: If the model does not take such a size or window.
        """
        content = hashlib.sha256(bytes(str(photograph.shape), "ascii") + photograph.numpy().tobytes()).hexdigest()
        key = (content, size_px, window)
        if key not in self._kept:
            self._kept[key] = self._encode(photograph, size_px, window)
            while len(self._kept) > KEPT_PASSES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _encode(self, photograph: Tensor, size_px: int, window: WindowSize) -> Pass:
        pixels = make_pixels(self.opened, photograph, size_px)
        maps, milliseconds = time_backbone(self.opened, pixels, window, self.opened.dense_adaptors)
        height, width = pixels.shape[-2:]
        return Pass(maps, (height, width), milliseconds)


def _now(device: torch.device) -> float:
    """Return the time in seconds at which a device has done what it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
