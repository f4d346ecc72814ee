"""Differences between our outputs and those of transformers' own `RadioModel`, without `trust_remote_code`."""

from .configuration_radio import RadioConfig


def native_differences(config: RadioConfig) -> list[str]:
    """Name what makes the outputs of transformers' native `RadioModel` differ on a folder of this configuration.

    None where summary and features are equal; adaptors and intermediate features do not count, native has none.
    """
    reads_registers = any(index >= config.num_cls_tokens for index in config.summary_idxs or [])
    reasons = {
        "tokens that are merged, and a decoder": config.num_mergings > 0,
        "rotary positions, which native does not know": config.navit is not None,
        "a position table resized with aligned corners": config.pos_embed_align_corners,
        "a position table cropped instead of fitted to each grid": not config.use_cropped_positions,
        "a feature normalizer": config.use_feature_normalizer,
        "E-RADIO, or a network of a library, which native does not know": config.is_foreign,
        "LayerScale that is not folded into the linear layers": config.use_layer_scale,
        "a `layerscale_value` other than 1, by which native scales": config.layerscale_value != 1,
        "a final norm": config.use_final_norm,
        "a biased patch projection": config.use_patch_bias,
        "SwiGLU, whose weights have other names there": config.use_swiglu_ffn,
        "a summary of registers, which native cuts off": reads_registers,
        "`return_dict` off, with which native stops; open it with `return_dict=True`": not config.return_dict,
        "windowed attention by default": config.vitdet_window_size is not None and config.has_windowed_blocks,
    }
    return [reason for reason, applies in reasons.items() if applies]
