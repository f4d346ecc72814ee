"""RADIO1D in NVIDIA's files: its arguments, its keys, and its stored outputs."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.presets_radio import mlp_ratio_for


_LAYER_SCALE = re.compile(r"^(base_model\.blocks\.\d+\.ls[12])\.grandma$")
_CALL = re.compile(
    r"(?P<size>\d+x\d+)/(?P<mode>tokens(?:\d+|max)|mixed)/(?P<neck>encoder|decoder|decoder_adaptors/[^/]+)/(?P<kind>\w+)"
)
_BLOCK = re.compile(r"(?P<size>\d+x\d+)/encoder_blocks/(?P<block>\d+)/features")


def radio1d_key(key: str) -> str:
    """Return the key of a training file as RADIO1D has it: LayerScale of its blocks has the plain name."""
    return _LAYER_SCALE.sub(r"\1.gamma", key)


def radio1d_arguments(config: RadioConfig) -> dict[str, Any]:
    """Return the training arguments that describe a RADIO1D of ours: all its sizes stand in `model_kwargs`.

    Raises:
        ValueError: If NVIDIA's code has no such network.
    """
    if config.patch_size != 16 or not config.use_cropped_positions or config.use_patch_bias:
        raise ValueError(
            "NVIDIA's RADIO1D has `patch_size` 16, `use_cropped_positions` and no `use_patch_bias`, got "
            f"{config.patch_size}, {config.use_cropped_positions} and {config.use_patch_bias}."
        )
    # There is one ratio for all widths, rounded down at each: the smallest that is large enough for all.
    widths = [config.hidden_size << count for count in range(config.num_mergings + 1)]
    own = [config.merged_intermediate_size(count) for count in range(config.num_mergings + 1)]
    ratio = max(map(mlp_ratio_for, own, widths))
    theirs = [int(width * ratio) for width in widths]
    if own != theirs:
        raise ValueError(
            f"`intermediate_size` and `merged_intermediate_sizes` must be {theirs} in NVIDIA's code, got {own}."
        )
    kwargs = {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": ratio,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layerscale_value if config.use_layer_scale else None,
        "cpe_max_size": config.max_img_size,
        "img_size": (config.filler_side << config.num_mergings) * config.patch_size,
        "num_cls_tokens": config.num_cls_tokens,
        "num_registers": config.num_registers,
        "downscale_levels": config.downscale_levels,
        "decoder_depth": config.decoder_depth,
        "decoder_upscale_levels": config.splitting_blocks,
        "progressive_reduction": config.progressive_reduction,
    }
    return {"model": "radio1d_large_patch16_224", "model_kwargs": kwargs, "model_norm": config.use_final_norm}


@torch.no_grad()
def radio1d_outputs(model: RadioModel, stored: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Return by key what a RADIO1D gives for the stored outputs that only such a network has.

    Args:
        model: In evaluation mode.
        stored: `HxW/image_uint8` and `HxW/tokensN/encoder|decoder/summary|features` (N is the number asked for, or
            "max"), `HxW/tokensN/decoder_adaptors/NAME/...`, `HxW/encoder_blocks/BLOCK/features`; also
            `HxW/mixed/image_uint8`, `HxW/mixed/num_tokens` and `HxW/mixed/encoder|decoder/...`.

    Returns:
        One entry for each, `None` where the model has no such adaptor.
    """
    calls: dict[tuple[str, str], list[re.Match[str]]] = {}
    outputs: dict[str, Tensor | None] = {}
    for key in stored:
        if match := _CALL.fullmatch(key):
            calls.setdefault((match["size"], match["mode"]), []).append(match)
        elif match := _BLOCK.fullmatch(key):
            images = stored[f"{match['size']}/image_uint8"] / 255
            outputs[key] = model.get_intermediate_features(images, [int(match["block"])])[0].features
    for (size, mode), matches in calls.items():
        if mode == "mixed":
            images, num_tokens = stored[f"{size}/mixed/image_uint8"], stored[f"{size}/mixed/num_tokens"].tolist()
        else:
            images, asked = stored[f"{size}/image_uint8"], mode.removeprefix("tokens")
            num_tokens = None if asked == "max" else int(asked)
        names = list(model.radio_model.adaptors)
        output = model(images / 255, num_tokens=num_tokens, adaptor_names=names, return_dict=True)
        necks = {"decoder": (output.summary, output.features), "encoder": (output.global_summary, output.global_tokens)}
        necks |= {f"decoder_adaptors/{name}": (each.summary, each.features) for name, each in output.adaptors.items()}
        for match in matches:
            summary, features = necks.get(match["neck"], (None, None))
            outputs[match[0]] = summary if match["kind"] == "summary" else features
    return outputs
