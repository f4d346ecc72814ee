"""Tiny Nemotrons: a RADIO as the vision tower, a projector and a stand-in for the language model, in every naming."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel, RadioPreTrainedModel


OUTPUT_SIZE, PROJECTOR_SIZE = 24, 40
NATIVE = {
    "radio_model.model.patch_generator.video_embedder": "embeddings.video_patch_projection",
    "radio_model.model.patch_generator.embedder": "embeddings.patch_projection",
    "radio_model.model.patch_generator.pos_embed": "embeddings.position_embedding",
    "radio_model.model.patch_generator.cls_token.token": "embeddings.cls_register_token",
    "radio_model.model.blocks": "encoder.layer",
    "attn.proj": "attention.o_proj",
    "radio_model.": "",
}
THIRDS = {"native": ("q_proj", "k_proj", "v_proj"), "sglang": ("attention.query", "attention.key", "attention.value")}
PROJECTORS = {
    "nvidia": ("mlp1.0", "mlp1.1", "mlp1.3"),
    "native": ("multi_modal_projector.layer_norm", "multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
    "sglang": ("vision_projector.mlp1.norm", "vision_projector.mlp1.linear1", "vision_projector.mlp1.linear2"),
}


@torch.no_grad()
def build_tower(kind: type[RadioPreTrainedModel] = RadioModel, **fields: Any) -> Any:
    """Return a tiny RADIO, or a model with a head, whose every tensor is random, in evaluation mode."""
    model = kind(RadioConfig.from_preset("radio-test", **{"num_hidden_layers": 2, **fields})).eval()
    for parameter in model.parameters():
        parameter += 0.4 * torch.rand_like(parameter) - 0.2
    return model


def tower_tensors(tower: RadioModel, names: str, scale: str) -> dict[str, Tensor]:
    """Return the tower's tensors as a Nemotron stores them.

    Args:
        tower: The tower.
        names: "nvidia", "native" (transformers since 5.17) or "sglang".
        scale: Name of LayerScale with `{}` for its number.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in tower.state_dict().items():
        if "norm_mean" in key or "norm_std" in key:
            continue
        if key.startswith("radio_model.model.norm."):
            tensors[f"vision_projector.vision_final_layernorm.{key.rpartition('.')[2]}"] = tensor
            continue
        for number in "12":
            key = key.replace(f"ls{number}.grandma", scale.format(number))
        if names == "nvidia":
            tensors[f"vision_model.{key}"] = tensor
            continue
        for ours, native in NATIVE.items():
            key = key.replace(ours, native)
        prefix = "vision_model." if names == "native" else "vision_model.radio_model.hf_model."
        if "attn.qkv" in key:
            for third, part in zip(THIRDS[names], tensor.chunk(3), strict=True):
                tensors[prefix + key.replace("attn.qkv", f"attention.{third}")] = part
        else:
            tensors[prefix + key] = tensor
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def save_nemotron(
    folder: Path,
    tower: RadioModel,
    *,
    names: str = "nvidia",
    scale: str = "ls{}",
    has_args: bool = True,
    is_sharded: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Save a Nemotron around a tower and return its folder.

    Args:
        folder: Folder to make.
        tower: The tower.
        names: Kind of names, see `tower_tensors`.
        scale: Name of LayerScale.
        has_args: Whether `vision_config` has training arguments, or else native's fields.
        is_sharded: Whether weights are in three files, the first without any of the tower.
        dtype: Data type of all weights but the final norm's.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    config = tower.config
    sizes = ((4 * config.hidden_size,), (PROJECTOR_SIZE, 4 * config.hidden_size), (OUTPUT_SIZE, PROJECTOR_SIZE))
    others = {
        f"{name}.weight": torch.rand(*size, generator=generator)
        for name, size in zip(PROJECTORS[names], sizes, strict=True)
    }
    language = {f"language_model.{index}.weight": torch.rand(5, 7, generator=generator) for index in range(4)}
    own = sorted(tower_tensors(tower, names, scale).items())
    half = len(own) // 2
    shards = [
        {"language_model.0.weight": language["language_model.0.weight"]},
        {"language_model.1.weight": language["language_model.1.weight"], **dict(own[:half])},
        {**dict(own[half:]), **others, **{name: language[name] for name in list(language)[2:]}},
    ]
    shards = [
        {
            name: tensor.to(dtype) if tensor.is_floating_point() and "layernorm" not in name else tensor
            for name, tensor in shard.items()
        }
        for shard in shards
    ]
    metadata = {"format": "pt"}
    if is_sharded:
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-00003.safetensors"
            save_file(shard, folder / file, metadata=metadata)
            weight_map |= dict.fromkeys(shard, file)
        size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(
            {name: tensor for shard in shards for name, tensor in shard.items()},
            folder / "model.safetensors",
            metadata=metadata,
        )
    (folder / "config.json").write_text(json.dumps(nemotron_config(config, has_args=has_args), indent=1))
    (folder / "modeling_nemotron.py").write_text("raise RuntimeError('run by a stranger')\n")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def nemotron_config(config: RadioConfig, *, has_args: bool) -> dict[str, Any]:
    """Return the `config.json` of a Nemotron around a tower of this configuration."""
    vision: dict[str, Any]
    if has_args:
        teachers = [
            {"name": f"teacher_{index}", "use_summary": index in (config.summary_idxs or [])}
            for index in range(config.num_cls_tokens)
        ]
        args = {
            "model": "vit_huge_patch16_224",
            "model_kwargs": {"num_heads": config.num_attention_heads},
            "teachers": teachers,
            "cls_token_per_teacher": True,
            "cpe_max_size": config.max_img_size,
            "register_multiple": config.num_prefix_tokens,
            "min_num_patches": 4,
            "max_num_patches": 64,
        }
        vision = {
            "args": args,
            "version": "radio_v2.5-h",
            "preferred_resolution": [64, 64],
            "patch_size": config.patch_size,
            "video_temporal_patch_size": config.video_temporal_patch_size or 1,
            "separate_video_embedder": True,
        }
    else:
        names = "hidden_size num_hidden_layers num_attention_heads mlp_ratio num_cls_tokens num_registers summary_idxs"
        names += " patch_size max_img_size video_temporal_patch_size use_swiglu_ffn qkv_bias norm_mean norm_std"
        vision = {"model_type": "radio", **{name: getattr(config, name) for name in names.split()}}
    return {
        "architectures": ["NemotronH_Nano_VL_V2"],
        "model_type": "NemotronH_Nano_VL_V2",
        "auto_map": {"AutoModel": "modeling_nemotron.Model"},
        "force_image_size": 64,
        "patch_size": config.patch_size,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "norm_mean": list(config.norm_mean),
        "norm_std": list(config.norm_std),
        "vit_hidden_size": config.hidden_size,
        "projector_hidden_size": PROJECTOR_SIZE,
        "llm_config": {"hidden_size": OUTPUT_SIZE},
        "vision_config": vision,
    }
