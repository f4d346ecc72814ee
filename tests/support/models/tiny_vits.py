"""Tiny plain ViTs of the real classes of transformers and timm, with random weights everywhere."""

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn


SIDE, PATCH = 32, 8
SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = {"image_size": SIDE, "patch_size": PATCH}
DINOV2 = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, **IMAGE}
TIMM = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 48, "depth": 2, "num_heads": 2}


def _transformers(name: str, **fields: Any) -> nn.Module:
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**fields))


def _timm(name: str, **arguments: Any) -> nn.Module:
    return timm.create_model(name, **{**TIMM, **arguments})


VITS: dict[str, Callable[[], nn.Module]] = {
    "vit": functools.partial(_transformers, "ViTModel", **SIZES, **IMAGE),
    "vit_mae": functools.partial(_transformers, "ViTMAEModel", **SIZES, **IMAGE, mask_ratio=0.0),
    "dinov2": functools.partial(_transformers, "Dinov2Model", **DINOV2),
    "dinov2_gated": functools.partial(_transformers, "Dinov2Model", **{**DINOV2, "mlp_ratio": 4}, use_swiglu_ffn=True),
    "dinov2_registers": functools.partial(_transformers, "Dinov2WithRegistersModel", **DINOV2, num_register_tokens=3),
    "dinov3": functools.partial(_transformers, "DINOv3ViTModel", **SIZES, **IMAGE, num_register_tokens=3),
    "dinov3_gated": functools.partial(
        _transformers, "DINOv3ViTModel", **SIZES, **IMAGE, use_gated_mlp=True, hidden_act="silu", num_register_tokens=3
    ),
    "siglip": functools.partial(_transformers, "SiglipVisionModel", **SIZES, **IMAGE),
    "siglip2_flexible": functools.partial(
        _transformers, "Siglip2VisionModel", **SIZES, patch_size=PATCH, num_patches=(SIDE // PATCH) ** 2
    ),
    "timm_vit": functools.partial(_timm, "vit_small_patch16_224"),
    "timm_dinov2": functools.partial(_timm, "vit_small_patch14_reg4_dinov2"),
    "timm_dinov2_gated": functools.partial(_timm, "vit_giant_patch14_dinov2"),
    "timm_siglip": functools.partial(_timm, "vit_base_patch16_siglip_224"),
    "timm_mae": functools.partial(_timm, "vit_base_patch16_224.mae"),
    "timm_dinov3": functools.partial(_timm, "vit_small_patch16_dinov3"),
    "timm_dinov3_gated": functools.partial(_timm, "vit_small_plus_patch16_dinov3"),
    "timm_dinov3_biased": functools.partial(_timm, "vit_small_patch16_dinov3_qkvb"),
}
"""By a name of ours."""


def build_vit(name: str, seed: int = 0) -> nn.Module:
    """Return one in evaluation, in which no weight is a zero or a one: none may be forgotten unnoticed."""
    torch.manual_seed(seed)
    network = VITS[name]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + 0.1)
    return network


def first_block(network: nn.Module) -> nn.Module:
    """Return the block that the tokens pass first; timm keeps blocks in a `Sequential`."""
    if isinstance(network, timm.models.vision_transformer.VisionTransformer | timm.models.eva.Eva):
        return network.blocks[0]
    return next(module for module in network.modules() if isinstance(module, nn.ModuleList))[0]


@torch.no_grad()
def around_first_block(network: nn.Module, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens that enter and leave the first block; pixels are normalized as the network expects it."""
    seen: list[Tensor] = []

    def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        seen.append(output[0] if isinstance(output, tuple) else output)

    hook = first_block(network).register_forward_hook(record, with_kwargs=True)
    rows, cols = (side // PATCH for side in pixel_values.shape[2:])
    kind = type(network).__name__
    if kind == "ViTMAEModel":
        network(pixel_values, noise=torch.arange(rows * cols).float().expand(len(pixel_values), -1))
    elif kind == "Siglip2VisionModel":
        patches = pixel_values.unflatten(2, (rows, PATCH)).unflatten(4, (cols, PATCH)).permute(0, 2, 4, 3, 5, 1)
        mask = torch.ones(len(pixel_values), rows * cols, dtype=torch.long)
        network(
            pixel_values=patches.flatten(3).flatten(1, 2),
            pixel_attention_mask=mask,
            spatial_shapes=torch.tensor([[rows, cols]]).expand(len(pixel_values), -1),
        )
    else:
        network(pixel_values)
    hook.remove()
    return seen[0], seen[1]
