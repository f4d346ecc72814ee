"""Converts a checkpoint to a folder that timm opens by `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm reads the backbone's tensors by NVIDIA's names, and resizes the table of positions for the size of its images as
this model does itself. Adaptors and ViTDet windows stay behind, and of several class tokens timm pools the first.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.checks_radio import read_json
from modeling_radio.conversion.opening import FolderSettings
from modeling_radio.core.command_line import Command, one_line_warnings
from modeling_radio.core.files import FolderKind, check_output, write_folder
from modeling_radio.core.opening import open_for_export


ARCHITECTURES = {
    (1280, 32, True): "vit_huge_patch16_radio_v3",
    (768, 12, True): "vit_base_patch16_radio_v3",
    (1024, 24, False): "vit_large_patch16_radio_v3",
    (1536, 40, False): "vit_giant_patch16_radio_v3",
    (1152, 27, False): "vit_so400m_patch16_radio_v4",
    (1280, 32, False): "vit_huge_patch16_radio_v4",
}
"""timm's names by width, depth and whether positions are resized with aligned corners. Other shapes take the last name
of their kind, and their own sizes as its arguments."""

TRUNK = "radio_model.model."
TIMM_FOLDER = FolderKind("folders for timm", ("config.json", "model.safetensors"), lambda folder: _is_for_timm(folder))
"""The only kind of folder that the command may replace."""

_PLAIN = {
    "eradio": None,
    "navit": None,
    "wrapped": None,
    "downscale_levels": None,
    "qk_norm": False,
    "use_swiglu_ffn": False,
    "use_final_norm": False,
    "use_feature_normalizer": False,
    "use_patch_bias": False,
    "use_cropped_positions": True,
    "video_temporal_patch_size": None,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
"""Values that timm's RADIO supports, by field of the configuration."""


def timm_config(config: RadioConfig) -> dict[str, Any]:
    """Return the `config.json` of timm's folder for a model.

    Raises:
        ValueError: If timm's RADIO lacks something that the model has.
    """
    values = config.to_dict()
    for name, value in _PLAIN.items():
        if values[name] != value:
            raise ValueError(f"`{name}` must be {value!r} in a checkpoint for timm, got {values[name]!r}.")
    aligned = config.pos_embed_align_corners
    last = [name for (_, _, is_aligned), name in ARCHITECTURES.items() if is_aligned == aligned][-1]
    height, width = config.preferred_resolution
    return {
        "architecture": ARCHITECTURES.get((config.hidden_size, config.num_hidden_layers, aligned), last),
        "num_classes": 0,
        "num_features": config.hidden_size,
        "model_args": {
            "img_size": [height, width],
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.mlp_ratio,
            "qkv_bias": config.qkv_bias,
            "init_values": config.layerscale_value if config.use_layer_scale else None,
            "reg_tokens": config.num_prefix_tokens - 1,
        },
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(config.norm_mean),
            "std": list(config.norm_std),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def save_for_timm(model: RadioModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` for timm into a folder that exists."""
    (folder / "config.json").write_text(json.dumps(timm_config(model.config), indent=2) + "\n", encoding="utf-8")
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key.startswith(TRUNK)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _is_for_timm(folder: Path) -> bool:
    """Return whether a folder was written by this command, or by timm."""
    path = folder / "config.json"
    return path.is_file() and "pretrained_cfg" in read_json(path)


COMMAND = Command("radio convert --to timm", __doc__, FolderSettings, positionals=("checkpoint", "output"))


@one_line_warnings(COMMAND.name)
def _run(settings: FolderSettings) -> None:
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.checkpoint], kind=TIMM_FOLDER)
    model = open_for_export(settings.checkpoint).backbone
    config = timm_config(model.config)
    write_folder(settings.output, partial(save_for_timm, model), overwrite=settings.overwrite)
    opened = f'timm.create_model("local-dir:{settings.output}", pretrained=True)'
    print(f"{settings.output}: {config['architecture']}, opened by {opened}")


main = partial(COMMAND.run, _run, extra="commands")


if __name__ == "__main__":
    sys.exit(main())
