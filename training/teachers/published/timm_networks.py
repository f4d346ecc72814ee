"""Networks of timm by name: Perception Encoder, MobileCLIP2, OpenCLIP's CLIPs, EUPE and most others.

Normalization and native size are those of the network's `pretrained_cfg`, and so is the license; see
`docs/how-to/teachers.md`. transformers has Perception Encoder and MobileCLIP2 as networks of timm only.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from modeling_radio.checks_radio import check_choice
from modeling_radio.training.recipes.sections import Precision
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput, teacher_error, tokens_to_map
from modeling_radio.training.teachers.published.base import WEIGHT_DTYPES, Weights, check_weights


Summary = Literal["pooled", "projected", "none"]

_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
"""Arguments that let timm's transformers, which are built for one size, take any."""

_PROBE_PATCHES = 4
"""Patches along a side of the image that finds the shapes of an output, on the meta device. Our choice."""


def create_network(model_name: str, *, pretrained: bool) -> Any:
    """Return a network of timm that takes images of any size, as far as it can.

    Args:
        model_name: The argument of `timm.create_model`: a name, `local-dir:FOLDER`, `hf-hub:ORG/NAME`.
        pretrained: False for random weights.

    Raises:
        ValueError: If there is no such network or its weights cannot be loaded; the message is one line.
    """
    import timm

    try:
        return timm.create_model(model_name, pretrained=pretrained, **_freedom(model_name))
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"timm does not open {model_name!r}: {reason}. See `timm.list_models()`.") from error


def dense_features(network: Any, hidden: Any, pixels: Tensor) -> Tensor:
    """Return the output of a network's `forward_features` as a map, `(batch, channels, rows, cols)`.

    Args:
        network: A network of timm.
        hidden: The output: a map, channels first or last, or tokens on a grid of patches behind the prefix.
        pixels: The images, `(batch, 3, height, width)`.

    Raises:
        ValueError: If it is neither.
    """
    height, width = pixels.shape[-2:]
    if isinstance(hidden, Tensor) and hidden.ndim == 4:
        is_channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return hidden.movedim(-1, 1) if is_channels_last else hidden
    if isinstance(hidden, Tensor) and hidden.ndim == 3:
        for stride in sorted({int(info["reduction"]) for info in network.feature_info}):
            num_patches = (height // stride) * (width // stride)
            if hidden.shape[1] - num_patches == getattr(network, "num_prefix_tokens", 0):  # LeViT has none
                return tokens_to_map(hidden[:, hidden.shape[1] - num_patches :], pixels, stride)
    shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
    raise ValueError(
        f"`forward_features` of timm's {type(network).__name__} must be a map or tokens on a grid of patches, "
        f"got {shape} for images of {height} x {width} px."
    )


@functools.cache
def _freedom(model_name: str) -> dict[str, Any]:
    """Return the arguments that let a network take any size, if its class or a base class has them."""
    import timm

    with torch.device("meta"):
        classes = type(timm.create_model(model_name)).__mro__
    known = {name for each in classes for name in inspect.signature(each.__init__).parameters}
    return {name: value for name, value in _ANY_SIZE.items() if name in known}


class TimmTeacher(Teacher):
    """A network of timm.

    Args:
        name: Name of the teacher.
        source: timm's name, for example `vit_pe_core_large_patch14_336.fb`, a folder in timm's layout, or a Hub id.
        summary: "pooled" before the last linear layer, "projected" by it, into the space of texts for the image tower
            of a CLIP (to the logits for a classifier), or "none".
        layer: Source of the features, a 0-based index into timm's `forward_intermediates`, or a negative one from the
            end: a block of a transformer, a stage of a convolutional network. None for the last features, after the
            last norm. Perception Encoder has its best dense ones inside (https://arxiv.org/abs/2504.13181).
        weights: "pretrained", or "random".
        weights_dtype: Type of the stored weights.

    Raises:
        ValueError: If timm does not open the network, or it has no such summary or layer.
    """

    network: Any

    def __init__(
        self,
        name: str,
        *,
        source: str,
        summary: Summary = "pooled",
        layer: int | None = None,
        weights: Weights = "pretrained",
        weights_dtype: Precision = "float32",
    ) -> None:
        error = functools.partial(teacher_error, name)
        check_choice("summary", summary, ("pooled", "projected", "none"), error=error)
        check_weights(name, weights, weights_dtype)
        model_name = _model_name(source)
        try:
            with torch.device("meta"):
                outline = create_network(model_name, pretrained=False)
                shapes = _find_shapes(outline, summary, layer)
            is_planned = weights == "random" and torch.get_default_device().type == "meta"
            network = outline if is_planned else create_network(model_name, pretrained=weights == "pretrained")
        except ValueError as problem:
            raise error(str(problem)) from problem
        is_dynamic = shapes.runs_at_any_size and not network.pretrained_cfg.get("fixed_input_size", False)
        super().__init__(
            name,
            summary_dim=shapes.summary_dim,
            feature_dim=shapes.feature_dim,
            patch_size=shapes.stride,
            native_size_px=shapes.native_size_px,
            runs_at_any_size=shapes.runs_at_any_size,
            default_mode="native" if is_dynamic else "fixed",
            size_multiple=shapes.size_multiple,
            normalization=(tuple(network.pretrained_cfg["mean"]), tuple(network.pretrained_cfg["std"])),
        )
        self.summary, self.layer = summary, layer
        self.network = network.to(WEIGHT_DTYPES[weights_dtype])
        self.is_convolutional = not hasattr(self.network, "num_prefix_tokens")
        self.freeze()

    def encode(self, pixel_values: Tensor) -> TeacherOutput:
        """Return the chosen summary and features."""
        dtype = next(self.network.parameters()).dtype
        return _run(self.network, pixel_values.to(dtype), self.summary, self.layer)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of a plain transformer, which timm does not keep in a list; none for a hierarchy."""
        return [] if self.is_convolutional else list(self.network.blocks)


class _Shapes(NamedTuple):
    """Shapes of a network and its output; see `Teacher`."""

    summary_dim: int | None
    feature_dim: int
    stride: int
    size_multiple: int
    native_size_px: int
    runs_at_any_size: bool


def _model_name(source: str) -> str:
    """Return timm's name of a source."""
    if Path(source).expanduser().is_dir():
        return f"local-dir:{Path(source).expanduser()}"
    name = source.removeprefix("timm:")
    return f"hf-hub:{name}" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else name


def _run(network: Any, pixel_values: Tensor, summary: Summary, layer: int | None) -> TeacherOutput:
    if layer is None:
        hidden = network.forward_features(pixel_values)
        features = dense_features(network, hidden, pixel_values)
    else:
        hidden, (features,) = network.forward_intermediates(pixel_values, indices=[layer])
    if summary == "none":
        return TeacherOutput(None, features)
    return TeacherOutput(network.forward_head(hidden, pre_logits=summary == "pooled"), features)


@torch.no_grad()
def _find_shapes(network: Any, summary: Summary, layer: int | None) -> _Shapes:
    """Return the shapes of a network on the meta device."""
    network.eval()
    if summary == "projected" and not network.num_classes:
        raise ValueError("`summary` must be 'pooled' or 'none', got 'projected': the network has no last linear layer.")
    num_layers = len(network.feature_info)
    if layer is not None and layer not in range(-num_layers, num_layers):
        raise ValueError(f"`layer` must be from {-num_layers} to {num_layers - 1}, got {layer}.")
    largest = max(int(info["reduction"]) for info in network.feature_info)
    native = min(network.pretrained_cfg["input_size"][1:])
    side = _PROBE_PATCHES * largest
    try:
        pooled, features = _run(network, torch.empty(1, 3, side, side), summary, layer)
        runs_at_any_size = True
    except (RuntimeError, AssertionError):  # a network that was built for one size
        side = native
        pooled, features = _run(network, torch.empty(1, 3, side, side), summary, layer)
        runs_at_any_size = False
    summary_dim, stride = None if pooled is None else pooled.shape[1], side // features.shape[2]
    return _Shapes(summary_dim, features.shape[1], stride, largest, native // largest * largest, runs_at_any_size)
