"""Adaptors that cross-attend to a NaViT (`xattn_all` of NVIDIA's branch `navit`): summary and features of one module.

The module answers on a grid of the teacher's, and under a known warp of the image. Only networks with `heads` in
`config.navit` import this file. Modules carry NVIDIA's checkpoint names.
"""

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .checks_radio import COUNT, FLAG, LARGEST, MOST_BLOCKS, Resolution, did_you_mean, integer, listed, number, optional
from .configuration_radio import RadioAdaptorConfig, RadioConfig
from .layers_radio import RadioLayerScale
from .navit_radio import HEAD_EPS, CrossAttention, Rotation, grid_positions, start_linear, start_norm
from .outputs_radio import RadioAdaptorOutput


_PREFIX = 2
"""Tokens before the cells: one for the warp, one for the summary."""


class HeadOptions(NamedTuple):
    """Options of a head, an entry of `heads` in `config.navit`, by NVIDIA's names where NVIDIA has one.

    Attributes:
        num_layers: Layers of self-attention, cross-attention and an MLP.
        num_heads: Attention heads.
        rope_base: Base of the rotary frequencies.
        rope_fraction: Share of the frequencies that rotate.
        allow_self_attn: Whether layers have self-attention.
        qk_norm: Layer norm of queries and keys.
        use_layer_scale: Learned factor per channel on each branch.
        target_grid: Rows and columns of the answer; `None` takes the image's own.
        align_corners: Without a warp the outer cells of the answer lie on the centers of the image's outer patches, as
            NVIDIA's do. Otherwise the cells divide the image's area, as in training here. Both are equal on the image's
            own grid.
    """

    num_layers: int = 4
    num_heads: int = 16
    rope_base: float = 10000.0
    rope_fraction: float = 0.75
    allow_self_attn: bool = True
    qk_norm: bool = False
    use_layer_scale: bool = True
    target_grid: list[int] | None = None
    align_corners: bool = True

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], width: int) -> "HeadOptions":
        """Return the options of an adaptor.

        Raises:
            ValueError: If one is unknown or has no possible value.
        """
        for option, value in values.items():
            if option not in _RULES:
                raise ValueError(f"`navit.heads.{name}.{option}` is no option.{did_you_mean(option, _RULES)}")
            _RULES[option].check(f"navit.heads.{name}.{option}", value)
        options = cls(**values)
        if width % (4 * options.num_heads):
            raise ValueError(
                f"`navit.heads.{name}.num_heads` times 4 must divide `hidden_size` ({width}), got {options.num_heads}."
            )
        return options


_RULES = {
    "num_layers": integer(1, MOST_BLOCKS),
    "num_heads": COUNT,
    "rope_base": number(f"(0, {LARGEST}]"),
    "rope_fraction": number("[0, 1]"),
    "allow_self_attn": FLAG,
    "qk_norm": FLAG,
    "use_layer_scale": FLAG,
    "target_grid": optional(listed(COUNT, 2)),
    "align_corners": FLAG,
}


class SelfAttention(nn.Module):
    """Attention of tokens to one another, `(batch, length, hidden)` to the same, rotated by their positions."""

    def __init__(self, width: int, options: HeadOptions) -> None:
        super().__init__()
        self.num_heads = options.num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        size = width // options.num_heads
        norms = (nn.LayerNorm(size, eps=HEAD_EPS) if options.qk_norm else nn.Identity() for _ in range(2))
        self.q_norm, self.k_norm = norms

    def forward(self, tokens: Tensor, rotation: Rotation) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query, key = rotation.turn(self.q_norm(query).to(value)), rotation.turn(self.k_norm(key).to(value))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class CrossAttentionLayer(nn.Module):
    """Self-attention of the answer, its cross-attention to the image's patches, and an MLP, each behind a norm."""

    def __init__(self, width: int, options: HeadOptions) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.LayerNorm(width, eps=HEAD_EPS)

        def scale() -> nn.Module:
            return RadioLayerScale(width) if options.use_layer_scale else nn.Identity()

        self.self_attn = None
        if options.allow_self_attn:
            self.self_attn_norm, self.self_attn, self.self_attn_ls = norm(), SelfAttention(width, options), scale()
        self.cross_attn_norm, self.cross_attn_mem_norm, self.cross_attn_ls = norm(), norm(), scale()
        self.cross_attn = CrossAttention(width, options.num_heads, qk_norm=options.qk_norm)
        self.mlp_norm, self.mlp, self.mlp_ls = norm(), _mlp(width, 4 * width, width), scale()

    def forward(self, tokens: Tensor, memory: Tensor, turn_tokens: Rotation, turn_memory: Rotation) -> Tensor:
        if self.self_attn is not None:
            tokens = tokens + self.self_attn_ls(self.self_attn(self.self_attn_norm(tokens), turn_tokens))
        normed, memory = self.cross_attn_norm(tokens), self.cross_attn_mem_norm(memory)
        tokens = tokens + self.cross_attn_ls(self.cross_attn(normed, memory, turn_tokens, turn_memory))
        return tokens + self.mlp_ls(self.mlp(self.mlp_norm(tokens)))


def _from_edge_to_edge(count: int, device: torch.device, *, is_exact: bool) -> Tensor:
    """Return evenly spaced coordinates from -1 to 1, or -1 alone.

    Args:
        count: Their number; where it is not exact also a symbol of an exported graph, which `linspace` does not take.
        device: Device of the result.
        is_exact: Return those of `linspace` to the last bit, on which roundings to bfloat16 depend.
    """
    if is_exact:
        return torch.linspace(-1, 1, count, device=device)
    steps = torch.arange(count, device=device, dtype=torch.float32)
    return 2 * steps / steps[-1:].clamp(min=1) - 1


def crop_warp(answer: Resolution, grid: Resolution, shift: Tensor) -> Tensor:
    """Return the homographies from cells that divide a crop to the patches of another crop of the same size.

    Args:
        answer: Rows and columns of the cells.
        grid: Rows and columns of the patches.
        shift: Rows and columns of patches from the crop of the patches to that of the cells, `(batch, 2)`.

    Returns:
        `(batch, 3, 3)` as `CrossAttentionHead.forward` takes them, float32. A crop of one row or column of patches has
        no coordinates along it: all cells lie on it.
    """
    scales, starts = [], []
    for axis, (cells, count) in enumerate(zip(answer, grid, strict=True)):
        # The count may be a symbol of an exported graph, which only tensors divide right there.
        patches = torch.arange(1, count + 1, device=shift.device, dtype=torch.float64)[-1:]
        per_unit = 2 / (patches - 1).clamp(min=1)
        scale = per_unit * patches * (cells - 1) / (2 * cells)
        # The cell at -1, whose center is half a cell from the edge, in patches of which the first has its center at 0.
        first = (patches / cells - 1) / 2 + shift[:, axis].double()
        starts.append(per_unit * first - 1 + scale)
        scales.append(scale.expand_as(first))
    zero, (y_scale, x_scale), (y_start, x_start) = torch.zeros_like(starts[0]), scales, starts
    columns = [x_scale, zero, x_start, zero, y_scale, y_start, zero, zero, zero + 1]
    return torch.stack(columns, dim=1).unflatten(1, (3, 3)).float()


class WantedAnswer(NamedTuple):
    """The answer that is wanted of a head for the images of a grid.

    Attributes:
        grid: Rows and columns of its cells.
        homography: Warp of each image, as `CrossAttentionHead.forward` takes it; `None` is none.
    """

    grid: Resolution
    homography: Tensor | None


WANTED: ContextVar[Mapping[str, Mapping[tuple[int, int], WantedAnswer]] | None] = ContextVar("WANTED", default=None)
"""In training, by adaptor and by the grid of images, the answers that the calls of this thread want."""


class CrossAttentionHead(PreTrainedModel):
    """Answers for a teacher's summary and its features, on the teacher's grid.

    It is a `PreTrainedModel` because its weights start otherwise than those of other adaptors.
    """

    config_class = RadioConfig
    config: RadioConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    # Attention here is always PyTorch's own, whatever the blocks have.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig, values: Mapping[str, Any]) -> None:
        super().__init__(config)
        width, hidden = config.hidden_size, adaptor.hidden_size
        self.options = options = HeadOptions.of(adaptor.name, values, width)
        self.is_rounded = bool((config.navit or {}).get("rounded_angles"))
        self.layers = nn.ModuleList(CrossAttentionLayer(width, options) for _ in range(options.num_layers))
        self.summary_proj = _mlp(width, hidden, adaptor.summary_dim or 1)
        self.feature_proj = _mlp(width, hidden, adaptor.feature_dim or 1)
        self.homography_map = _mlp(9, hidden, width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw new weights as NVIDIA's code does: of linear layers outside of the layers, and biases, as torch does."""
        if isinstance(module, nn.Linear):
            start_linear(module, self._gains(module))
        elif isinstance(module, nn.LayerNorm):
            start_norm(module)
        elif isinstance(module, RadioLayerScale):
            index = next(index for index, layer in enumerate(self.layers) if module in layer.children())
            init.constant_(module.grandma, (self.config.num_hidden_layers + index + 1) ** -0.5)

    def _gains(self, module: nn.Module) -> tuple[float, ...]:
        """Return the gains of a layer's weights, of parts of equal size; none for one outside of the layers."""
        gain = math.sqrt(math.log(3 * len(self.layers)))
        layers: Any = self.layers
        for layer in layers:
            cross, attention = layer.cross_attn, layer.self_attn
            if attention is not None and module is attention.qkv:
                return 1.0, 1.0, gain
            if module in (cross.q_proj, cross.k_proj):
                return (1.0,)
            if module in layer.modules():
                return (gain,)
        return ()

    def target_grid(self, grid: Sequence[int]) -> Resolution:
        """Return rows and columns of the answer for an image of a grid."""
        return Resolution(*(grid if self.options.target_grid is None else self.options.target_grid))

    def places(self, homography: Tensor, target: Resolution) -> Tensor:
        """Return where cells of the answer lie in the images, x and y in [-1, 1], `(batch, cells, 2)`."""
        sides = (_from_edge_to_edge(count, homography.device, is_exact=self.is_rounded) for count in target)
        y, x = torch.meshgrid(*sides, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)
        warps = homography.float()
        if self.is_rounded:  # see `NavitOptions.rounded_angles`: of the product of matrices and what is made of it
            points, warps = points.bfloat16().float(), warps.bfloat16().float()
        warped = (warps[:, None] * points[:, None]).sum(-1)  # no product of matrices: autocast would round
        if self.is_rounded:
            warped = warped.bfloat16()
        return (warped[..., :2] / warped[..., 2:]).float()

    def forward(  # pyrefly: ignore[bad-override]
        self,
        token: Tensor,
        features: Tensor,
        homography: Tensor | None = None,
        grid_sizes: Sequence[Sequence[int]] | None = None,
        target_grid: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer for images of one size.

        Args:
            token: Class token of the teacher among the final tokens, `(batch, hidden)`.
            features: Final patch tokens, `(batch, rows * cols, hidden)`.
            homography: Matrix of each image that maps cells of the answer to the image's, in coordinates (x, y, 1) of
                which -1 and 1 are the centers of the outer cells, `(batch, 3, 3)`; `None` is the identity, or without
                `align_corners` that of cells which divide the image.
            grid_sizes: One pair, the rows and columns of the patches; `None` is for square images.
            target_grid: Rows and columns of the answer; `None` takes those of `HeadOptions`.

        Returns:
            Summary `(batch, summary_dim)` and features `(batch, cells, feature_dim)`. Where a cell lies outside of the
            image, the head starts from zeros there.
        """
        batch_size, length, width = features.shape
        rows, cols = (round(length**0.5),) * 2 if grid_sizes is None else grid_sizes[0]
        target = self.target_grid((rows, cols)) if target_grid is None else Resolution(*target_grid)
        if homography is None:
            homography = torch.eye(3, device=features.device).expand(batch_size, 3, 3)
            # In this order: an exported graph must not depend on the grid of its example.
            if not self.options.align_corners and (self.options.target_grid or target != (rows, cols)):
                homography = crop_warp(target, Resolution(rows, cols), homography.new_zeros(batch_size, 2))
        places = self.places(homography, target)
        maps = features.transpose(1, 2).unflatten(2, (rows, cols))
        sampled = F.grid_sample(maps, places[:, :, None].to(maps), padding_mode="zeros", align_corners=True)
        warp_token = self.homography_map(homography.flatten(1).to(features))
        front = torch.stack([warp_token.to(features), token.to(features)], dim=1)
        tokens = torch.cat([front, sampled[..., 0].transpose(1, 2)], dim=1)

        x, y = places.unbind(-1)
        cells = torch.stack([(y + 1) / 2 * (rows - 1), (x + 1) / 2 * (cols - 1)], dim=-1)
        positions = torch.cat([cells.new_full((batch_size, _PREFIX, 2), -1.0), cells], dim=1)
        of_patches = grid_positions(Resolution(rows, cols), 0, features.device)[None]
        size, base, fraction = width // self.options.num_heads, self.options.rope_base, self.options.rope_fraction
        turns = [
            Rotation.at(each, size, base, fraction, is_rounded=self.is_rounded) for each in (positions, of_patches)
        ]
        for layer in self.layers:
            tokens = layer(tokens, features, *turns)
        return self.summary_proj(tokens[:, 1]), self.feature_proj(tokens[:, _PREFIX:])


class CrossAttentionAdaptor(nn.Module):
    """An adaptor whose head answers for both outputs; the interface is that of `RadioAdaptor`."""

    upsample_factor, feat_mlp, first_dense_linear = 1, None, None

    def __init__(self, config: RadioConfig, adaptor: RadioAdaptorConfig, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.has_summary = adaptor.name, adaptor.summary_dim is not None
        self.token_index = self.head_idx = adaptor.token_index
        self.head_mlp = CrossAttentionHead(config, adaptor, values)
        self.head_mlp.summary_proj.requires_grad_(self.has_summary)  # which NVIDIA's layout always has

    def wanted(self, grid: Resolution) -> WantedAnswer:
        """Return the answer that is wanted for images of a grid."""
        of_grids = (WANTED.get() or {}).get(self.name, {}) if self.training else {}
        return of_grids[grid] if grid in of_grids else WantedAnswer(self.head_mlp.target_grid(grid), None)

    def forward(self, tokens: Tensor, features: Tensor, rows: int, cols: int) -> RadioAdaptorOutput:
        wanted = self.wanted(Resolution(rows, cols))
        summary, answer = self.head_mlp(
            tokens[:, self.token_index], features, wanted.homography, [(rows, cols)], wanted.grid
        )
        return RadioAdaptorOutput(summary=summary if self.has_summary else None, features=answer)

    @property
    def last_dense_linear(self) -> nn.Module:
        """The layer that writes the dense features."""
        return self.head_mlp.feature_proj[2]
