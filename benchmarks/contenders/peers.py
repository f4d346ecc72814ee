"""Other vision transformers, with random weights in the shape of ours."""

import torch
from torch import Tensor

from benchmarks.contenders.radio import Encode
from benchmarks.contenders.shapes import BlockWork, Place, Shape, Work
from modeling_radio import RadioConfig


SAM3_WINDOW = 24
SAM3_PRETRAINED_GRID = 24
"""Patches of a window and along a side of the table of positions, as `facebook/sam3`."""


def split_patches(images: Tensor, size: int) -> Tensor:
    """Cut images into flattened patches `(batch, rows * cols, size**2 * channels)`, channels last."""
    batch, channels, height, width = images.shape
    patches = images.reshape(batch, channels, height // size, size, width // size, size)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, channels * size**2)


def encode_with_dinov3(config: RadioConfig, place: Place) -> Encode:
    """Return a function that runs DINOv3 of transformers, with as many tokens as ours."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    shape = Shape.of(config)
    model = DINOv3ViTModel(
        DINOv3ViTConfig(**_widths(shape), patch_size=shape.patch_size, num_register_tokens=shape.num_prefix - 1)
    )
    model = model.eval().to(place.device, place.dtype)
    return lambda images: model(images).last_hidden_state


def encode_with_siglip2(config: RadioConfig, place: Place) -> Encode:
    """Return a function that runs SigLIP2 of transformers without its head; it has patch tokens only."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    shape = Shape.of(config)
    model = Siglip2VisionModel(
        Siglip2VisionConfig(**_widths(shape), patch_size=shape.patch_size, vision_use_head=False)
    )
    model = model.eval().to(place.device, place.dtype)

    def encode(images: Tensor) -> Tensor:
        patches = split_patches(images, shape.patch_size)  # which its processor does
        grid = [side // shape.patch_size for side in images.shape[2:]]
        grids = torch.tensor([grid] * len(images), device=images.device)
        return model(patches, None, grids).last_hidden_state

    return encode


def encode_with_sam3(config: RadioConfig, place: Place, size: int) -> Encode:
    """Return a function that runs SAM3's encoder of transformers for images of one size; it has patch tokens only."""
    from transformers.models.sam3 import Sam3ViTConfig, Sam3ViTModel

    shape = Shape.of(config)
    model = Sam3ViTModel(
        Sam3ViTConfig(
            **_widths(shape),
            patch_size=shape.patch_size,
            image_size=size,
            window_size=SAM3_WINDOW,
            global_attn_indexes=sam3_global_blocks(shape.depth),
            pretrain_image_size=SAM3_PRETRAINED_GRID * shape.patch_size,
        )
    )
    model = model.eval().to(place.device, place.dtype)
    return lambda images: model(images).last_hidden_state


def sam3_global_blocks(depth: int) -> list[int]:
    """Return the last block of each quarter, as in the published network of 32."""
    return [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]


def sam3_work(shape: Shape, rows: int, cols: int) -> Work:
    """Return the work of SAM3's blocks: windows are padded to their full size before the layers around attention."""
    down, across = (-(-side // SAM3_WINDOW) for side in (rows, cols))
    whole = BlockWork(rows * cols, ((1, rows * cols),))
    windowed = BlockWork(rows * cols, ((down * across, SAM3_WINDOW**2),))
    return [whole if index in sam3_global_blocks(shape.depth) else windowed for index in range(shape.depth)]


def encode_with_timm_vit(config: RadioConfig, place: Place, size: int) -> Encode:
    """Return a function that runs timm's plain vision transformer, with as many tokens as ours."""
    from timm.models.vision_transformer import VisionTransformer

    shape = Shape.of(config)
    model = VisionTransformer(
        img_size=size,
        patch_size=shape.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=shape.mlp_width / shape.width,
        reg_tokens=shape.num_prefix - 1,
        no_embed_class=True,
    )
    model = model.eval().to(place.device, place.dtype)
    return model.forward_features


def _widths(shape: Shape) -> dict[str, int]:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
    }
