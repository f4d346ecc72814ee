"""NaViT, the trunk of NVIDIA's branch `navit`: a vision transformer without a table of positions.

Queries and keys are rotated by the row and the column of their patch, so no size of images is the one of the training.
Only networks with `navit` in their configuration import this file. Modules carry NVIDIA's checkpoint names.

Differences from NVIDIA's code: queries, keys, values and angles are computed in the model's own type (NVIDIA's casts
them to bfloat16), so float32 works; a call may choose other windows than the configuration's.

References:
    Rotary positions in two dimensions: https://arxiv.org/abs/2403.13298. Start values: Magneto,
    https://arxiv.org/abs/2210.06423. Matryoshka widths: https://arxiv.org/abs/2205.13147.
"""

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .checks_radio import (
    FLAG,
    LARGEST,
    MAPPING,
    Resolution,
    Rule,
    check_blocks,
    did_you_mean,
    integer,
    listed,
    number,
    optional,
)
from .configuration_radio import RadioConfig
from .hub_radio import import_sibling
from .inputs_radio import Batch, Call, resolve_window, split_draws
from .layers_radio import (
    AttentionLayout,
    ImagePack,
    RadioAttention,
    RadioBlock,
    RadioLayerScale,
    RadioMLP,
    RadioVisionTransformer,
    Record,
    Segments,
)
from .modeling_radio import RadioNetwork, ReadTokens
from .outputs_radio import FeatureFormat, NetworkOutput, to_map


HEAD_EPS = 1e-5
"""Epsilon of the norms in the attention pool, torch's default, unlike that of the blocks."""
SMALLEST_WIDTH = 128
"""Least number of channels that matryoshka training keeps."""


def matryoshka_widths(hidden_size: int) -> list[int]:
    """Return the widths that matryoshka training keeps: powers of two from 128 on, and all channels."""
    below = [SMALLEST_WIDTH << power for power in range(20) if SMALLEST_WIDTH << power < hidden_size]
    return [*below, hidden_size]


def kept_channels(uniform: Tensor, hidden_size: int) -> Tensor:
    """Return which channels of each image are kept, 1 or 0, `(images, 1, hidden_size)`.

    Args:
        uniform: Numbers in [0, 1), `(images,)`.
        hidden_size: Width of the tokens.
    """
    widths = torch.tensor(matryoshka_widths(hidden_size), device=uniform.device)
    bounds = (2.0 ** torch.arange(1, len(widths) + 1, device=uniform.device) - 1) / (2 ** len(widths) - 1)
    index = torch.searchsorted(bounds, uniform.contiguous().to(bounds), right=True).clamp(max=len(widths) - 1)
    return (torch.arange(hidden_size, device=uniform.device) < widths[index][:, None]).float()[:, None]


_TOKEN_STD = 0.02


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {list(choices)}", lambda value: isinstance(value, str) and value in choices)


class NavitOptions(NamedTuple):
    """Options in `RadioConfig.navit`, by NVIDIA's names where NVIDIA has one.

    Attributes:
        norm_layer: "layernorm" or "rmsnorm", of the blocks and the end.
        norm_method: Norms before each branch of a block ("pre"), behind it ("post"), or both ("peri").
        post_norm_affine: Whether the last norm has weights.
        rope_base: Base of the rotary frequencies.
        rope_fraction: Share of the frequencies that rotate; the slowest ones are left out.
        rounded_angles: Round angles, their sines and cosines to bfloat16, as NVIDIA's code does under autocast.
        pool_type: Class tokens in front ("cls_token"), or as many queries that attend to all tokens at the end
            ("attn"), with norms of queries and keys ("attn_qknorm").
        matryoshka: In training, set channels from a random width on to zero, in the final tokens and in those of
            blocks: 128, 256, ... or all, each twice as likely as the one before. NVIDIA draws one width for a batch;
            here each image has its own, so that it trains the same in whatever batch it is (our choice).
        scaled_by_depth: LayerScale of the 0-based block `i` starts at `1 / sqrt(i + 1)`, not at `layerscale_value`.
        global_blocks: Blocks with global attention where there are windows; `None` spreads them by
            `vitdet_num_global` or `vitdet_num_windowed`.
        inner_summary_idxs: Class tokens that make up the summary of intermediate blocks; `None` takes all.
        heads: By name of an adaptor that cross-attends to the patches, its options (`HeadOptions` in
            `xattn_radio.py`).
    """

    norm_layer: str = "layernorm"
    norm_method: str = "pre"
    post_norm_affine: bool = False
    rope_base: float = 1000.0
    rope_fraction: float = 1.0
    rounded_angles: bool = False
    pool_type: str = "cls_token"
    matryoshka: bool = False
    scaled_by_depth: bool = False
    global_blocks: list[int] | None = None
    inner_summary_idxs: list[int] | None = None
    heads: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: RadioConfig) -> "NavitOptions":
        """Return the options of a configuration.

        Raises:
            ValueError: If one is unknown or has no possible value.
        """
        values: Mapping[str, Any] = config.navit or {}
        for name, value in values.items():
            if name not in _RULES:
                raise ValueError(f"`navit.{name}` is no option of this network.{did_you_mean(name, _RULES)}")
            _RULES[name].check(f"navit.{name}", value)
        options = cls(**values)
        if options.global_blocks:
            check_blocks("navit.global_blocks", options.global_blocks, config.num_hidden_layers)
        if any(index >= config.num_cls_tokens for index in options.inner_summary_idxs or []):
            raise ValueError(
                f"`navit.inner_summary_idxs` must be below `num_cls_tokens` ({config.num_cls_tokens}), got "
                f"{options.inner_summary_idxs}."
            )
        return options

    @property
    def has_pool(self) -> bool:
        """True if queries make the class tokens of the final ones."""
        return self.pool_type != "cls_token"


_RULES = {
    "norm_layer": _one_of("layernorm", "rmsnorm"),
    "norm_method": _one_of("pre", "post", "peri"),
    "post_norm_affine": FLAG,
    "rope_base": number(f"(0, {LARGEST}]"),
    "rope_fraction": number("[0, 1]"),
    "rounded_angles": FLAG,
    "pool_type": _one_of("cls_token", "attn", "attn_qknorm"),
    "matryoshka": FLAG,
    "scaled_by_depth": FLAG,
    "global_blocks": optional(listed(integer(0))),
    "inner_summary_idxs": optional(listed(integer(0))),
    "heads": optional(MAPPING),
}


class Rotation(NamedTuple):
    """Cosines and sines by which queries and keys are rotated, `(batch or 1, length, 1, head_dim / 2)` each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_dim: int, base: float, fraction: float, is_rounded: bool = False) -> "Rotation":
        """Return the rotation of tokens.

        Args:
            positions: Row and column of each token, `(batch or 1, length, 2)`, in float32.
            head_dim: Channels of a head, a multiple of 4.
            base: Frequency `j` of `n = head_dim / 4` is `base ** (-j / n)`.
            fraction: Share of the frequencies that are not 0.
            is_rounded: Round to bfloat16, see `NavitOptions.rounded_angles`.
        """
        count = head_dim // 4
        turning = int(fraction * count)  # cut, not rounded
        frequencies = [base ** (-index / count) if index < turning else 0.0 for index in range(count)]
        table = torch.tensor(frequencies, dtype=torch.float32, device=positions.device)

        def rounded(tensor: Tensor) -> Tensor:
            return tensor.bfloat16().float() if is_rounded else tensor

        angles = rounded(rounded(positions)[..., None] * rounded(table)).flatten(-2)[:, :, None]
        return cls(rounded(angles.cos()), rounded(angles.sin()))

    def select(self, order: Tensor) -> "Rotation":
        """Return the rotation of the tokens in another order."""
        return Rotation(*(part[:, order.to(part.device)] for part in self))

    def turn(self, heads: Tensor) -> Tensor:
        """Rotate queries or keys, `(batch, length, heads, head_dim)`, component `i` with `i + head_dim / 2`."""
        first, second = heads.chunk(2, dim=-1)
        cos, sin = (part.to(heads) for part in self)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def grid_positions(grid: Resolution, num_prefix: int, device: torch.device) -> Tensor:
    """Return row and column of each token of an image, `(num_prefix + rows * cols, 2)`; prefix tokens are at -1, -1."""
    rows, cols = (torch.arange(size, device=device, dtype=torch.float32) for size in grid)
    cells = torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([cells.new_full((num_prefix, 2), -1.0), cells])


def build_norm(kind: str, width: int, eps: float, *, affine: bool = True) -> nn.Module:
    """Return a layer norm, or a norm by the root mean square, which has no bias."""
    norm = nn.LayerNorm if kind == "layernorm" else nn.RMSNorm
    return norm(width, eps=eps, elementwise_affine=affine)


class NavitAttention(RadioAttention):
    """Self-attention with rotated queries and keys; `None` rotates nothing."""

    def forward(  # pyrefly: ignore[bad-override]
        self,
        hidden_states: Tensor,
        segments: Segments | None = None,
        record: Record | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        query, key, value = self.project(hidden_states).unbind(2)
        if rotation is not None:
            query, key = rotation.turn(query), rotation.turn(key)
        return self.mix(torch.stack([query, key, value], dim=2), segments, record)


class NavitBlock(RadioBlock):
    """Transformer block with norms before its branches, behind them, or both.

    Arguments and shapes are those of `RadioBlock`, with the rotation of the tokens.
    """

    def __init__(self, config: RadioConfig, options: NavitOptions, index: int) -> None:
        super(RadioBlock, self).__init__()
        self.scale_start = (index + 1) ** -0.5 if options.scaled_by_depth else config.layerscale_value
        width, eps, method = config.hidden_size, config.layer_norm_eps, options.norm_method

        def norm(*methods: str) -> nn.Module:
            return build_norm(options.norm_layer, width, eps) if method in methods else nn.Identity()

        layer_scale = RadioLayerScale if config.use_layer_scale else nn.Identity
        self.norm_attn_pre, self.norm_attn_post = norm("pre", "peri"), norm("post", "peri")
        self.attn = NavitAttention(config, config.num_attention_heads, config.qkv_bias)
        self.ls1 = layer_scale(width)
        self.norm_mlp_pre, self.norm_mlp_post = norm("pre", "peri"), norm("post", "peri")
        self.mlp = RadioMLP(config, config.intermediate_size)
        self.ls2 = layer_scale(width)

    def forward(
        self,
        hidden_states: Tensor,
        segments: Segments | None = None,
        factors: Tensor | None = None,
        record: Record | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        branch = self.norm_attn_post(self.attn(self.norm_attn_pre(hidden_states), segments, record, rotation))
        hidden_states = hidden_states + self._scale(self.ls1(branch), factors, 0)
        branch = self.norm_mlp_post(self.mlp(self.norm_mlp_pre(hidden_states)))
        return hidden_states + self._scale(self.ls2(branch), factors, 1)


class CrossAttention(nn.Module):
    """Attention of some tokens to others, both rotated by their positions.

    Shapes of `forward`: tokens that ask `(batch, n, hidden)` and that answer `(batch, m, hidden)`, normed, to
    `(batch, n, hidden)`; a rotation that is `None` rotates nothing.
    """

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out_proj = nn.Linear(width, width)
        norms = (nn.LayerNorm(width // num_heads, eps=HEAD_EPS) if qk_norm else nn.Identity() for _ in range(2))
        self.q_norm, self.k_norm = norms

    def forward(
        self, tokens: Tensor, memory: Tensor, turn_tokens: Rotation | None = None, turn_memory: Rotation | None = None
    ) -> Tensor:
        query, key, value = (
            project(part).unflatten(-1, (self.num_heads, -1))
            for project, part in ((self.q_proj, tokens), (self.k_proj, memory), (self.v_proj, memory))
        )
        query, key = self.q_norm(query).to(value), self.k_norm(key).to(value)
        query = query if turn_tokens is None else turn_tokens.turn(query)
        key = key if turn_memory is None else turn_memory.turn(key)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class NavitPool(nn.Module):
    """Learned queries that read all tokens of an image: `(batch, length, hidden)` to `(batch, queries, hidden)`."""

    def __init__(self, config: RadioConfig, options: NavitOptions) -> None:
        super().__init__()
        width = config.hidden_size
        self.tgt = nn.Parameter(torch.empty(1, config.num_cls_tokens, width))
        self.tgt_norm, self.mem_norm, self.mlp_norm = (nn.LayerNorm(width, eps=HEAD_EPS) for _ in range(3))
        has_norms = options.pool_type == "attn_qknorm"
        self.cross_attn = CrossAttention(width, config.num_attention_heads, qk_norm=has_norms, bias=config.qkv_bias)
        inner = config.intermediate_size
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, tokens: Tensor, rotation: Rotation) -> Tensor:
        queries = self.tgt_norm(self.tgt).expand(tokens.shape[0], -1, -1)  # at 0, 0: not rotated
        pooled = self.cross_attn(queries, self.mem_norm(tokens), turn_memory=rotation)
        return pooled + self.mlp(self.mlp_norm(pooled))


class NavitPatches(nn.Module):
    """Projection of patches, each with its channels last: `(..., patch * patch * channels)` to `(..., hidden)`."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.patch_size, self.num_channels = config.patch_size, config.num_channels
        self.proj = nn.Linear(config.patch_size**2 * config.num_channels, config.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        dtype = self.proj.bias.dtype  # the weight itself may be quantized
        return self.proj(patches.to(dtype)).to(dtype)  # under autocast tokens stay in their type through all blocks

    def cut(self, images: Tensor) -> Tensor:
        """Cut images `(batch, channels, height, width)` into patches, `(batch, rows * cols, patch * patch * channels)`.

        Of a pack, whose patches are images of a patch each, that is `(patches, 1, ...)`.
        """
        batch_size, channels, height, width = images.shape
        size = self.patch_size
        patches = images.reshape(batch_size, channels, height // size, size, width // size, size)
        # (batch, channels, rows, size, cols, size) -> (batch, rows, cols, size, size, channels)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, -1, size * size * channels)


def start_linear(module: nn.Linear, gains: Sequence[float]) -> None:
    """Draw the weights of a linear layer, and its biases as torch does.

    Args:
        module: Layer to fill.
        gains: Those of Xavier's normal distribution for parts of the outputs of equal size; none draws as torch does.
    """
    bound = module.in_features**-0.5
    if gains:
        rows = module.out_features // len(gains)
        std = (2 / (module.in_features + rows)) ** 0.5
        like = module.weight
        parts = [torch.randn(rows, module.in_features, device=like.device) * gain * std for gain in gains]
        init.copy_(module.weight, torch.cat(parts))
    else:
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        init.uniform_(module.bias, -bound, bound)


def start_norm(module: nn.LayerNorm | nn.RMSNorm) -> None:
    """Let a norm begin without effect."""
    if module.weight is not None:
        init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm):
            init.zeros_(module.bias)


class NavitTransformer(PreTrainedModel):
    """Patches, blocks, the last norm and the attention pool.

    It is a `PreTrainedModel` because its weights start otherwise than those of other networks.
    """

    config_class = RadioConfig
    config: RadioConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    path_factors: Any = RadioVisionTransformer.path_factors

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.options = options = NavitOptions.of(config)
        depth, self.embed_dim = config.num_hidden_layers, config.hidden_size
        self.patch_embed = NavitPatches(config)
        self.num_front = config.num_registers + (0 if options.has_pool else config.num_cls_tokens)
        front = nn.Parameter(torch.empty(1, self.num_front, config.hidden_size)) if self.num_front else None
        self.cls_token = front
        self.blocks = nn.ModuleList(NavitBlock(config, options, index) for index in range(depth))
        affine = options.post_norm_affine
        self.norm_post = build_norm(options.norm_layer, config.hidden_size, config.layer_norm_eps, affine=affine)
        self.attn_pool = NavitPool(config, options) if options.has_pool else None
        self.is_global = [config.is_global_block(index) for index in range(depth)]
        self.drop_path_rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
        self.post_init()

    @property
    def norm(self) -> nn.Module:
        """The last norm."""
        return self.norm_post

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw new weights as NVIDIA's code does: of linear layers outside of the blocks, and biases, as torch does."""
        if isinstance(module, nn.Linear):
            start_linear(module, self._gains(module))
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            start_norm(module)
        elif isinstance(module, RadioLayerScale):
            block = next(block for block in self.blocks if module in (block.ls1, block.ls2))
            init.constant_(module.grandma, block.scale_start)  # pyrefly: ignore[bad-argument-type]
        elif isinstance(module, NavitPool):
            init.normal_(module.tgt, std=_TOKEN_STD)
        elif isinstance(module, NavitTransformer) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=_TOKEN_STD)

    def _gains(self, module: nn.Module) -> tuple[float, ...]:
        """Return the gains of a layer's weights, of parts of equal size; none for a layer outside of the blocks."""
        gain = math.sqrt(math.log(2 * len(self.blocks)))
        blocks: Any = self.blocks
        for block in blocks:
            if module is block.attn.qkv:
                return 1.0, 1.0, gain
            if module in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                return (gain,)
        return ()

    def embed(self, images: Tensor, pack: ImagePack | None) -> Tensor:
        """Return what the first block reads, `(batch, length, hidden)`, of a pack `(1, length, hidden)`.

        Args:
            images: Normalized images, `(batch, channels, height, width)`; of a pack each patch is one.
            pack: Order of packed images.
        """
        tokens = self.patch_embed(self.patch_embed.cut(images))
        if pack is None:
            return self._with_front(tokens)
        groups = [self._with_front(group).flatten(0, 1) for group in pack.group_patches(tokens.flatten(0, 1))]
        return torch.cat(groups).unsqueeze(0)

    def _with_front(self, tokens: Tensor) -> Tensor:
        if self.cls_token is None:
            return tokens
        return torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def rotation(self, grids: Mapping[Resolution, int], device: torch.device) -> Rotation:
        """Return the rotation of a sequence: by grid of images, in their order, how many there are."""
        config, options = self.config, self.options
        images = [grid_positions(grid, self.num_front, device).repeat(count, 1) for grid, count in grids.items()]
        positions = torch.cat(images) if len(images) > 1 else images[0]
        head_dim = config.hidden_size // config.num_attention_heads
        return Rotation.at(
            positions[None], head_dim, options.rope_base, options.rope_fraction, is_rounded=options.rounded_angles
        )

    def forward(  # pyrefly: ignore[bad-override]
        self,
        hidden_states: Tensor,
        layout: AttentionLayout,
        rotation: Rotation,
        keep: Collection[int] = (),
        draws: Tensor | None = None,
        with_attentions: bool = False,
    ) -> tuple[Tensor, dict[int, Tensor], list[list[Tensor]]]:
        """Run the blocks; other arguments and results are those of `RadioVisionTransformer.forward`.

        Args:
            hidden_states: As `embed` returns them.
            layout: Layout that says which tokens attend to each other.
            rotation: Rotation of the tokens.
            keep: As there.
            draws: As there.
            with_attentions: As there.

        Returns:
            The output of the last block, which `finish` takes; else as there. Attention weights of a windowed block
            begin with those of the tokens before the patches.
        """
        kept, attentions = {}, [[] for _ in self.blocks]
        order, segments = self._windows(layout)
        in_windows = None if order is None else rotation.select(order)
        tokens, is_cut = hidden_states, False

        def whole(tokens: Tensor) -> Tensor:
            if order is None or not is_cut:
                return tokens
            return torch.empty_like(tokens).index_copy(1, order.to(tokens.device), tokens)

        for index, block in enumerate(self.blocks):
            record = attentions[index].append if with_attentions else None
            factors = self.path_factors(index, tokens, None if draws is None else draws[:, :, index])
            if order is None or self.is_global[index]:
                tokens, is_cut = whole(tokens), False
                tokens = block(tokens, layout.global_segments, factors, record, rotation)
            else:
                if not is_cut:
                    tokens, is_cut = tokens[:, order.to(tokens.device)], True
                if factors is not None and factors.shape[1] > 1:
                    factors = factors[:, order.to(factors.device)]
                tokens = block(tokens, segments, factors, record, in_windows)
            if index in keep:
                kept[index] = whole(tokens)
        return whole(tokens), kept, attentions

    def _windows(self, layout: AttentionLayout) -> tuple[Tensor | None, Segments]:
        """Return the order and the segments of windowed blocks, where tokens before the patches see one another."""
        if layout.window_order is None:
            return None, ()
        if not self.num_front:
            return layout.window_order, layout.window_segments
        device, offset, fronts, num_images = layout.window_order.device, 0, [], 0
        for count, length in layout.global_segments:
            starts = offset + length * torch.arange(count, device=device)
            fronts.append((starts[:, None] + torch.arange(self.num_front, device=device)).flatten())
            offset, num_images = offset + count * length, num_images + count
        order = torch.cat([*fronts, layout.window_order])
        return order, ((num_images, self.num_front), *layout.window_segments)

    def finish(self, tokens: Tensor, segments: Segments, rotation: Rotation) -> Tensor:
        """Return the final tokens of the output of the last block: normed, with class tokens in front.

        Args:
            tokens: Output of the last block.
            segments: The sequence as runs of images.
            rotation: Rotation of the tokens.
        """
        tokens = self.norm_post(tokens)
        pool = self.attn_pool
        if pool is None:
            return tokens
        if len(segments) == 1 and segments[0][0] == 1:
            return torch.cat([pool(tokens, rotation), tokens], dim=1)
        return self._by_image(
            tokens, segments, lambda images, run: torch.cat([pool(images, rotation.select(run)), images], dim=1)
        )

    def with_queries(self, tokens: Tensor, segments: Segments) -> Tensor:
        """Return tokens with the pool's queries in front of each image, in the places of its class tokens."""
        if self.attn_pool is None:
            return tokens
        queries = self.attn_pool.tgt.to(tokens.dtype)
        return self._by_image(
            tokens, segments, lambda images, _: torch.cat([queries.expand(len(images), -1, -1), images], dim=1)
        )

    @staticmethod
    def _by_image(tokens: Tensor, segments: Segments, change: Any) -> Tensor:
        """Change a sequence image by image: the function takes images `(n, length, hidden)` and a place of one."""
        if len(segments) == 1 and segments[0][0] == 1:
            return change(tokens, torch.arange(tokens.shape[1], device=tokens.device))
        changed, offset = [], 0
        for (count, length), run in zip(
            segments, tokens.split([count * length for count, length in segments], dim=1), strict=True
        ):
            place = torch.arange(offset, offset + length, device=tokens.device)
            images = change(run.unflatten(1, (count, length)).flatten(0, 1), place)
            changed.append(images.reshape(tokens.shape[0], -1, tokens.shape[-1]))
            offset += count * length
        return torch.cat(changed, dim=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the final tokens of normalized images, `(batch, channels, height, width)`, by global attention."""
        grid = Resolution(*(side // self.config.patch_size for side in x.shape[-2:]))
        tokens = self.embed(x, None)
        layout = AttentionLayout.for_grid(*grid, self.num_front, None, tokens.device)
        rotation = self.rotation({grid: 1}, tokens.device)
        return self.finish(self(tokens, layout, rotation)[0], layout.global_segments, rotation)


class NavitNetwork(RadioNetwork):
    """The network behind the models of a NaViT, with the options in `config.navit`.

    Raises:
        ValueError: If an option is wrong, or a field of the configuration asks for what this network does not have.
    """

    def __init__(self, config: RadioConfig, use_adaptors: bool = True) -> None:
        options = NavitOptions.of(config)
        wanted: dict[str, Any] = {
            "eradio": None,
            "wrapped": None,
            "downscale_levels": None,
            "use_swiglu_ffn": False,
            "video_temporal_patch_size": None,
            "use_patch_bias": True,
            "use_final_norm": True,
            "summary_idxs": list(range(config.num_cls_tokens)),
        }
        for name, value in wanted.items():
            if getattr(config, name) != value:
                raise ValueError(f"`{name}` must be {value!r} with `navit`, got {getattr(config, name)!r}.")
        head_dim = config.hidden_size // config.num_attention_heads
        if head_dim % 4:
            raise ValueError(
                f"`hidden_size` must be a multiple of 4 for each of `num_attention_heads` "
                f"({config.num_attention_heads}) with `navit`, got {config.hidden_size}."
            )
        if options.has_pool and not config.num_cls_tokens:
            raise ValueError("`num_cls_tokens` must be at least 1 with an attention pool (`navit.pool_type`), got 0.")
        super().__init__(config, use_adaptors)
        for name, values in (options.heads or {}).items():
            if name in self.adaptors:  # options of adaptors that were left out stay
                adaptor = import_sibling("xattn_radio").CrossAttentionAdaptor
                self.adaptors[name] = adaptor(config, config.adaptor(name), values)

    def _read_images(
        self, tokens: Tensor, grid: Resolution, names: Sequence[str], feature_format: FeatureFormat
    ) -> ReadTokens:
        """Read the final tokens; heads with cross-attention answer on grids of their own."""
        own = [name for name in names if name in (self.model.options.heads or {})]
        others = [name for name in names if name not in own]
        summary, features, outputs = super()._read_images(tokens, grid, others, feature_format)
        for name in own:
            adaptor: Any = self.adaptor(name)
            outputs[name] = output = adaptor(tokens, self.patch_features(tokens), *grid)
            if feature_format == "NCHW":
                output.features = to_map(output.features, adaptor.wanted(grid).grid)
        return summary, features, {name: outputs[name] for name in names}

    def embed(self, result: NetworkOutput) -> Tensor:
        name = self.config.text_adaptor or ""
        if name not in self.adaptors or name not in (self.model.options.heads or {}):
            return super().embed(result)
        adaptor: Any = self.adaptors[name]
        return adaptor(result.tokens, self.patch_features(result.tokens), *result.grid).summary

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        return NavitTransformer(config)

    @property
    def input_embeddings(self) -> nn.Module:
        """The patch projection, which reads the pixels."""
        return self.model.patch_embed.proj

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        self.model.patch_embed.proj = value

    def encode(self, call: Call) -> NetworkOutput:
        """Run the trunk.

        Hidden states of a network with an attention pool have its queries in the places of the class tokens, which
        only the final tokens have.

        Raises:
            ValueError: If the window is none.
        """
        batch, trunk, pack = call.batch, self.model, copy.copy(call.batch.pack)
        if pack is not None:
            pack.num_prefix = trunk.num_front  # without the class tokens of a pool
        path_draws = None
        if self.training or call.draws is not None:
            path_draws = split_draws(call._replace(batch=dataclasses.replace(batch, pack=pack)), self.config)[1]
        tokens = trunk.embed(self.input_conditioner(self._images(batch)), pack)
        window = resolve_window(self.config, call.window_size, batch.grid)
        if pack is None:
            layout = AttentionLayout.for_grid(*batch.grid, trunk.num_front, window, tokens.device)
            grids = {batch.grid: 1}
        else:
            layout = pack.layout(window, tokens.device)
            grids = {grid: len(images) for grid, images in pack.groups.items()}
        rotation = trunk.rotation(grids, tokens.device)
        last, kept, weights = trunk(tokens, layout, rotation, call.keep, path_draws, call.with_attentions)
        segments = layout.global_segments
        tokens = trunk.with_queries(tokens, segments)
        kept = {block: trunk.with_queries(output, segments) for block, output in kept.items()}
        final = trunk.finish(last, segments, rotation)
        if self.training and trunk.options.matryoshka:
            uniform = torch.rand(batch.num_images, device=final.device) if call.draws is None else call.draws[:, 0]
            mask = kept_channels(uniform.to(final.device), self.config.hidden_size)
            mask = batch.spread(mask).to(final)  # pyrefly: ignore[missing-attribute]
            final, kept = final * mask, {block: output * mask for block, output in kept.items()}
        return self.collect(call, tokens, final, kept, weights)

    def finish_block(self, tokens: Tensor, grid: Resolution) -> Tensor:
        """Return the final tokens as if a block were the last: normed, with the pool's class tokens.

        Args:
            tokens: Output of the block as `encode` keeps it, `(batch, length, hidden)`.
            grid: Rows and columns of patches.
        """
        trunk = self.model
        tokens = tokens[:, self.config.num_prefix_tokens - trunk.num_front :]  # without the queries
        return trunk.finish(tokens, ((1, tokens.shape[1]),), trunk.rotation({grid: 1}, tokens.device))

    def _images(self, batch: Batch) -> Tensor:
        """Return images, of a pack each patch as one."""
        if batch.pack is None:
            return batch.pixels
        config = self.config
        return batch.pixels.view(-1, config.num_channels, config.patch_size, config.patch_size)

    def summarize_block(self, tokens: Tensor) -> Tensor:
        """Concatenate the class tokens that make up the summary of an intermediate block; a pool's has none."""
        if self.model.options.has_pool:
            return tokens[:, 0, :0]
        indices = self.model.options.inner_summary_idxs
        parts = [tokens[:, index] for index in (self.config.summary_idxs if indices is None else indices) or []]
        return torch.cat(parts, dim=1) if parts else tokens[:, 0, :0]
