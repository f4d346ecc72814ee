"""RADIO in several implementations: ours, transformers' native one, timm's, and plain code."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders.shapes import BlockWork, Place, Shape, Work, global_work
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.layout_radio import partition_windows


Encode = Callable[[Tensor], Tensor]
"""From images `(batch, 3, height, width)` in [0, 1] to tokens `(batch, length, width)`."""


def build_ours(config: RadioConfig, place: Place, *, compiled: bool = False, prepacked: bool = False) -> RadioModel:
    """Return our model; `compiled` compiles its blocks, whose code is the same, once for all of them and all sizes."""
    model = RadioModel(config).eval().to(place.device, place.dtype)
    if compiled:
        for block in model.radio_model.model.blocks:
            block.compile(dynamic=None)
    return model.prepack_weights() if prepacked else model


def encode_with_ours(config: RadioConfig, place: Place, window: int | str = "global", **changes: bool) -> Encode:
    """Return a function that runs our model with a window; `changes` are those of `build_ours`."""
    model = build_ours(config, place, **changes)
    return lambda images: model(images, window_size=window).last_hidden_state


def ours_work(shape: Shape, rows: int, cols: int, window: int | None) -> Work:
    """Return the work of our blocks: prefix tokens sit out those with windows."""
    tokens = shape.num_prefix + rows * cols
    if window is None:
        return global_work(shape, tokens)
    _, segments = partition_windows(rows, cols, window)
    whole, windowed = BlockWork(tokens, ((1, tokens),)), BlockWork(rows * cols, segments)
    return [windowed if index in shape.windowed else whole for index in range(shape.depth)]


def build_native(config: RadioConfig, place: Place) -> nn.Module:
    """Return transformers' model of our configuration."""
    from transformers.models.radio import RadioConfig as NativeConfig
    from transformers.models.radio import RadioModel as NativeModel

    native = NativeConfig.from_dict(config.to_dict())
    return NativeModel(native).eval().to(place.device, place.dtype)


def encode_with_native(config: RadioConfig, place: Place) -> Encode:
    """Return a function that runs transformers' model."""
    model = build_native(config, place)
    return lambda images: model(images).last_hidden_state


def build_timm(config: RadioConfig, place: Place) -> nn.Module:
    """Return timm's RADIO, which it builds of its NaFlexViT."""
    import timm

    shape = Shape.of(config)
    model = timm.create_model(
        "naflexvit_base_patch16_radio_v3",
        num_classes=0,
        patch_size=shape.patch_size,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=shape.mlp_width / shape.width,
        reg_tokens=shape.num_prefix - 1,
        init_values=config.layerscale_value if config.use_layer_scale else None,
        pos_embed_grid_size=2 * (shape.largest_grid,),
    )
    return model.eval().to(place.device, place.dtype)


def encode_with_timm(config: RadioConfig, place: Place) -> Encode:
    """Return a function that runs timm's RADIO."""
    model = build_timm(config, place)
    return model.forward_features


class PlainBlock(nn.Module):
    """A transformer block as one writes it down."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.qkv, self.proj = nn.Linear(shape.width, 3 * shape.width), nn.Linear(shape.width, shape.width)
        self.fc1, self.fc2 = nn.Linear(shape.width, shape.mlp_width), nn.Linear(shape.mlp_width, shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))


class PlainTransformer(nn.Module):
    """A vision transformer as one writes it down, for images of one size: nothing is checked, cropped or resized."""

    def __init__(self, shape: Shape, num_patches: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, shape.width, shape.patch_size, shape.patch_size)
        self.positions = nn.Parameter(torch.randn(1, num_patches, shape.width))
        self.prefix = nn.Parameter(torch.randn(1, shape.num_prefix, shape.width))
        self.blocks = nn.Sequential(*(PlainBlock(shape) for _ in range(shape.depth)))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.projection(images - 0.5).flatten(2).transpose(1, 2) + self.positions
        return self.blocks(torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], dim=1))


def encode_with_plain_code(config: RadioConfig, place: Place, size: int) -> Encode:
    """Return a function that runs plain code on images of one size."""
    shape = Shape.of(config)
    model = PlainTransformer(shape, (size // shape.patch_size) ** 2)
    return partial(model.eval().to(place.device, place.dtype))
