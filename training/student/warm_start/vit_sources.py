"""Where the trunk of a plain ViT comes from: a checkpoint of transformers or timm, or a network that is at hand.

| library | models |
| --- | --- |
| transformers | ViT, ViT-MAE's encoder, DINOv2 (registers or not), DINOv3 ViT, SigLIP's and SigLIP2's vision towers |
| timm | `VisionTransformer` and `Eva` with their ordinary blocks: ViT, DeiT-3, DINOv2, SigLIP, MAE, DINOv3 |

Weights are read by these libraries: safetensors, or pickles from which nothing but tensors is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from training.student.warm_start.vit import UnknownTrunkError, VitTrunk, read_trunk
from training.teachers.base import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD
from training.teachers.loading import explain_failure


TRANSFORMERS_MODELS = {
    "vit": "ViTModel",
    "vit_mae": "ViTMAEModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
"""Class by the model type of a checkpoint."""
NORMALIZATIONS = {
    "ViTModel": (HALF_MEAN, HALF_STD),
    "SiglipVisionModel": (HALF_MEAN, HALF_STD),
    "Siglip2VisionModel": (HALF_MEAN, HALF_STD),
}
"""Mean and deviation that the published checkpoints of a class expect, where they are not ImageNet's: a checkpoint
without `preprocessor_config.json` is taken to be like these."""
NO_TABLE = "rotary positions, which RADIO's attention has not"


def open_vit(source: str) -> VitTrunk | None:
    """Open a checkpoint of transformers or timm, by Hub id or from a folder.

    Args:
        source: For example `facebook/dinov2-with-registers-base` or `timm/vit_small_patch16_dinov3.lvd1689m`.

    Returns:
        Its trunk; None where `config.json` cannot be read or says that it is something else.

    Raises:
        UnknownTrunkError: If it does not load, or is a ViT that RADIO's trunk cannot be: one line.
    """
    config = _read_json(source, "config.json")
    if config is None:
        return None
    if "architecture" in config:
        return _open(source, lambda: _open_timm(source))
    class_name = TRANSFORMERS_MODELS.get(config.get("model_type", ""))
    return None if class_name is None else _open(source, lambda: _open_transformers(source, class_name))


def vit_of(network: Any, mean: Any = None, std: Any = None) -> VitTrunk:
    """Return the trunk of a network of transformers or timm.

    Args:
        network: One of the classes above, cut short or not.
        mean: Of the pixels in [0, 1] that it expects; None for what its class's published checkpoints expect.
        std: Of them.

    Raises:
        UnknownTrunkError: If it is another class, or has something that RADIO's trunk has not: one line.
    """
    name, module = type(network).__name__, type(network).__module__
    if module.startswith("transformers.") and name in TRANSFORMERS_MODELS.values():
        default_mean, default_std = NORMALIZATIONS.get(name, (IMAGENET_MEAN, IMAGENET_STD))
        return _of_transformers(network, mean or default_mean, std or default_std)
    if module.startswith("timm.") and name in ("VisionTransformer", "Eva"):
        return _of_timm(network, mean or network.pretrained_cfg["mean"], std or network.pretrained_cfg["std"])
    known = sorted({*TRANSFORMERS_MODELS.values(), "timm's VisionTransformer", "timm's Eva"})
    raise UnknownTrunkError(f"it is a {name}, and must be one of {', '.join(known)}")


def _of_transformers(network: Any, mean: Any, std: Any) -> VitTrunk:
    config, name = network.config, type(network).__name__
    has_class_token = not name.startswith("Siglip")
    is_rotary = name == "DINOv3ViTModel"
    is_dinov2_gated = getattr(config, "use_swiglu_ffn", False)  # whatever `hidden_act` says
    return read_trunk(
        f"{name} of transformers",
        network.state_dict(),
        num_heads=config.num_attention_heads,
        hidden_act="silu" if is_dinov2_gated else config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        mean=mean,
        std=std,
        num_prefix_positions=int(has_class_token),
        left_out=[NO_TABLE] if is_rotary else [],
    )


def _of_timm(network: Any, mean: Any, std: Any) -> VitTrunk:
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    first = network.blocks[0]
    if any(type(block) not in (Block, EvaBlock) for block in network.blocks):
        raise UnknownTrunkError(f"its blocks are {type(first).__name__}, and must be ordinary pre-norm ones")
    if getattr(first.mlp, "gate_last", False):
        raise UnknownTrunkError("its MLP has the gate behind the value")
    has_table = network.pos_embed is not None
    is_rotary = getattr(network, "rope", None) is not None
    return read_trunk(
        f"{type(network).__name__} of timm",
        network.state_dict(),
        num_heads=first.attn.num_heads,
        hidden_act=_activation(first.mlp.act),
        layer_norm_eps=first.norm1.eps,
        mean=mean,
        std=std,
        num_prefix_positions=0 if network.no_embed_class else network.num_prefix_tokens,
        grid=tuple(network.patch_embed.grid_size) if has_table else None,
        left_out=[NO_TABLE] if is_rotary else [],
    )


def _activation(module: nn.Module) -> str:
    """Return transformers' name of timm's activation."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    names = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}
    name = type(module).__name__
    if name not in names:
        raise UnknownTrunkError(f"its activation {name} has no name in transformers")
    return names[name]


def _open(source: str, load: Callable[[], VitTrunk]) -> VitTrunk:
    """Return what `load` gives, failures in one line."""
    try:
        return load()
    except UnknownTrunkError:
        raise
    except Exception as error:  # whatever a library makes of a damaged or foreign checkpoint
        raise UnknownTrunkError(f"it does not load: {explain_failure(error, source).rstrip('.')}") from error


def _open_transformers(source: str, class_name: str) -> VitTrunk:
    import torch
    import transformers

    model_class = getattr(transformers, class_name)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    config = getattr(config, "vision_config", config)
    arguments = {"add_pooling_layer": False} if class_name == "ViTModel" else {}
    network, report = model_class.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True, **arguments
    )
    problems = [*sorted(report["missing_keys"]), *sorted(map(str, report["mismatched_keys"]))]
    if problems:
        raise UnknownTrunkError(
            f"{len(problems)} of its weights are missing or of another shape, such as {problems[0]!r}"
        )
    processor = _read_json(source, "preprocessor_config.json")
    if processor is None:
        return vit_of(network)
    return vit_of(network, *_normalization(processor, network.config.num_channels))


def _normalization(processor: Mapping[str, Any], channels: int) -> tuple[Any, Any]:
    if processor.get("do_normalize", True) is False:
        return [0.0] * channels, [1.0] * channels
    return processor.get("image_mean"), processor.get("image_std")


def _open_timm(source: str) -> VitTrunk:
    import timm

    scheme = "local-dir" if Path(source).is_dir() else "hf-hub"
    return vit_of(timm.create_model(f"{scheme}:{source}", pretrained=True))


def _read_json(source: str, name: str) -> dict[str, Any] | None:
    """Return a file of a checkpoint; None where there is none, or it is no JSON object."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(source, name)
        content = None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
