"""The training arguments of a RADIO1D, where `model_kwargs` hold all that shapes the network."""

import math
from collections.abc import Mapping
from typing import Any

from modeling_radio.presets_radio import Size


MODEL = "radio1d_"
"""Beginning of these architectures' names, such as `radio1d_large_patch16_224`."""

MERGING_FIELDS = (
    "downscale_levels",
    "merged_intermediate_sizes",
    "qk_norm",
    "progressive_reduction",
    "decoder_depth",
    "decoder_upscale_levels",
    "filler_grid_size",
)
"""Fields of `RadioConfig` that only RADIO1D has."""

# Defaults of NVIDIA's code where the arguments do not say.
_IMAGE_SIZE = 224
_DECODER_DEPTH = 6


def is_radio1d(args: Mapping[str, Any]) -> bool:
    """True if training arguments are those of a RADIO1D."""
    return str(args.get("model")).startswith(MODEL)


def merging_fields(size: Size, kwargs: Mapping[str, Any], patch_size: int) -> dict[str, Any]:
    """Return the fields of `RadioConfig` that only RADIO1D has, and its table of positions.

    Args:
        size: Size of the architecture that the arguments name.
        kwargs: `args.model_kwargs` without what is null.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: If the arguments name no merging, or leave open where tokens are split again.
    """
    levels = list(kwargs.get("downscale_levels") or [])
    if not levels:
        raise ValueError("`args.model_kwargs.downscale_levels` must name at least one block, got none.")
    if len(levels) > 1 and "decoder_upscale_levels" not in kwargs:
        raise ValueError(
            f"`args.model_kwargs.decoder_upscale_levels` must be given for {len(levels)} mergings: NVIDIA's default "
            "splits the tokens once."
        )
    width = kwargs.get("embed_dim", size.hidden_size)
    ratio = float(kwargs.get("mlp_ratio", size.mlp_ratio))
    narrow = int(width * ratio)
    inner = [int((width << merges) * ratio) for merges in range(1, len(levels) + 1)]
    is_doubled = inner == [narrow << merges for merges in range(1, len(levels) + 1)]
    image_size = kwargs.get("img_size", _IMAGE_SIZE)
    return {
        "downscale_levels": levels,
        "merged_intermediate_sizes": None if is_doubled else inner,  # rounded anew at each width
        "qk_norm": bool(kwargs.get("qk_norm", False)),
        "progressive_reduction": bool(kwargs.get("progressive_reduction", False)),
        "decoder_depth": kwargs.get("decoder_depth", _DECODER_DEPTH),
        "decoder_upscale_levels": kwargs.get("decoder_upscale_levels"),
        "filler_grid_size": math.isqrt((image_size // patch_size) ** 2 // 4 ** len(levels)),
        "max_img_size": kwargs.get("cpe_max_size", image_size),
        "qkv_bias": bool(kwargs.get("qkv_bias", True)),
        "use_layer_scale": "init_values" in kwargs,
    }


def prefix_counts(args: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of class tokens and of registers, whatever the number of teachers."""
    kwargs = args.get("model_kwargs") or {}
    num_cls_tokens = kwargs.get("num_cls_tokens") or 1
    multiple = kwargs.get("register_multiple")
    # Zero registers count as not set.
    num_registers = kwargs.get("num_registers") or (multiple - num_cls_tokens % multiple if multiple else 0)
    return num_cls_tokens, num_registers
