"""Layers of the vision transformer, from pixels to features: normalization, patches and positions, attention, blocks.

References:
    Cropped position embeddings: AM-RADIO, appendix C, https://arxiv.org/abs/2312.06709. Windows: ViTDet, section 3,
    https://arxiv.org/abs/2203.16527.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_torch_greater_or_equal

from .checks_radio import Resolution
from .configuration_radio import RadioConfig


class RadioInputConditioner(nn.Module):
    """Normalizes RGB pixels in [0, 1] with the training mean and standard deviation, in float32."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.register_buffer("norm_mean", torch.tensor(config.norm_mean).view(-1, 1, 1))
        self.register_buffer("norm_std", torch.tensor(config.norm_std).view(-1, 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        normalized = (pixel_values.float() - self.norm_mean.float()) / self.norm_std.float()
        return normalized.to(pixel_values.dtype)


RESIZED_CHANNELS = 64  # our choice: 4 MB of a table of 128 x 128
COMPILES_SYM_MAX = is_torch_greater_or_equal("2.11")  # the versions in which we compiled it


def is_compiling_or_tracing() -> bool:
    """Return whether the pass is compiled, exported or traced, so that its sizes and tensors may stand for others."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_exporting() -> bool:
    """Return whether `torch.export` records this; in torch 2.6, which does not say, that is what Dynamo does not."""
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def _longer(rows: int, cols: int) -> int:
    """Return the longer side. Under export `max` would fix which one it is, and torch 2.6 cannot compile `sym_max`."""
    if COMPILES_SYM_MAX:
        return cast(int, torch.sym_max(rows, cols))
    return (rows + cols + abs(rows - cols)) // 2


def resize_position_table(table: Tensor, rows: int, cols: int, align_corners: bool) -> Tensor:
    """Resize a table of positions `(1, old_rows, old_cols, hidden)` bilinearly, to `(1, rows * cols, hidden)`.

    In float32 and in one piece of memory as NVIDIA's, since torch sums strided maps up in another order. On a CPU some
    channels at a time: the whole table, copied, may be larger than all that an image takes.
    """
    maps = table.permute(0, 3, 1, 2)
    parts = [maps] if is_compiling_or_tracing() or table.device.type != "cpu" else maps.split(RESIZED_CHANNELS, dim=1)
    resized = [
        F.interpolate(part.contiguous().float(), (rows, cols), mode="bilinear", align_corners=align_corners)
        for part in parts
    ]
    image = torch.cat(resized, dim=1) if len(resized) > 1 else resized[0]
    return image.flatten(2).transpose(1, 2)


PositionKey = tuple[int, int, torch.dtype]
"""Rows and columns of patches, and the type of the embeddings."""


class PositionCache:
    """Resized versions of one table, until it changes.

    Together they take no more memory than the table itself (our choice: a model at most doubles what it holds of
    positions, whatever sizes its images have), but the newest is kept in any case. What was not asked for the longest
    goes first. A copied or pickled model starts with an empty one.

    Without it a pass of ViT-B takes 30 % longer at 224 px (float32, one thread of an AMD EPYC, 2026-12-01).

    Threads may share it: what is kept is replaced as a whole and never changed, so that at worst two of them compute
    the same.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, dict[PositionKey, Tensor]] = (None, {})  # the table's state, and by grid, oldest first

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PositionCache, ()

    def get(self, table: Tensor, grid: PositionKey, resize: Callable[[], Tensor]) -> Tensor:
        """Return the output of `resize` for a grid, from an earlier call if the table is still the same.

        Tensors from `torch.inference_mode` could not be trained with, so none are made here.
        """
        state, (kept_state, kept) = _state(table), self._kept
        if kept_state != state:
            kept = {}
        position = kept.get(grid)
        if position is None:
            with torch.inference_mode(mode=False), torch.no_grad():
                position = resize()
        others = {key: value for key, value in kept.items() if key != grid}
        self._kept = (state, _newest({**others, grid: position}, table.nbytes))
        return position


def _newest(positions: dict[PositionKey, Tensor], max_bytes: int) -> dict[PositionKey, Tensor]:
    """Return the last entries that fit into some memory, and at least one."""
    kept: list[PositionKey] = []
    for grid in reversed(positions):
        max_bytes -= positions[grid].nbytes
        if kept and max_bytes < 0:
            break
        kept.append(grid)
    return {grid: positions[grid] for grid in reversed(kept)}


def _state(table: Tensor) -> tuple[int | float, ...]:
    """Return what changes when the table does.

    The version counter misses writes through `.data`, which many moving-average loops use, and tensors from
    `torch.inference_mode` have none: a sum of a thousandth of the table catches those. A write through `.data` to other
    numbers alone stays unseen: write to the parameter itself under `torch.no_grad` then.
    """
    probe = table.detach().flatten()[:: max(table.numel() // 1024, 1)].double().sum().item()
    return table.data_ptr(), 0 if table.is_inference() else table._version, probe


# A crop covers 10 % of the table's area or more, with an aspect ratio between 3:4 and 4:3.
MIN_CROP_AREA = 0.1
MAX_CROP_ASPECT = 4 / 3
POSITION_DRAWS = 4
"""Random numbers that decide one image's crop: scale, aspect ratio, column, row."""


def _even_coordinates(count: int, start: Tensor, extent: Tensor) -> Tensor:
    """Return `count` coordinates from each start over its extent, `(batch, count)` from `(batch, 1)`."""
    return torch.linspace(0, 1, count, device=start.device) * extent + start


def _neighbors(coordinates: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the two of `side` grid points around each coordinate in [0, 1], and their shares, `(..., 2)` each."""
    scaled_points = (coordinates * (side - 1)).clamp(0, side - 1)
    lower = scaled_points.floor()
    upper_share = scaled_points - lower
    points = torch.stack([lower, lower + 1], dim=-1).long().clamp(max=side - 1)
    return points, torch.stack([1 - upper_share, upper_share], dim=-1)


Segments = tuple[tuple[int, int], ...]
"""A sequence as consecutive runs `(count, length)`: `count` neighboring segments of `length` tokens each; a token
attends to its own segment only."""
Record = Callable[[Tensor], None]  # takes attention weights; a list would be copied by accelerate's and FSDP's hooks


def partition_windows(
    rows: int, cols: int, window_size: int, device: torch.device | None = None
) -> tuple[Tensor, Segments]:
    """Cut a `rows` x `cols` grid into windows of `window_size` x `window_size` tokens.

    Where the window does not divide the grid, the windows at the right and bottom edge are smaller, so that no
    padding and no mask is needed.

    Returns:
        The row-major index of each token, `(rows * cols,)`, window after window, and the windows as runs in that order:
        interior, right strip, bottom strip, corner, as far as they exist.

    References:
        ViTDet, section 3. https://arxiv.org/abs/2203.16527
    """
    full_rows, full_cols = rows - rows % window_size, cols - cols % window_size
    grid = torch.arange(rows * cols, device=device).view(rows, cols)
    regions = [
        (grid[:full_rows, :full_cols], window_size, window_size),
        (grid[:full_rows, full_cols:], window_size, cols - full_cols),
        (grid[full_rows:, :full_cols], rows - full_rows, window_size),
        (grid[full_rows:, full_cols:], rows - full_rows, cols - full_cols),
    ]
    orders, segments = [], []
    for region, height, width in regions:
        if region.numel():
            windows = region.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2)
            orders.append(windows.flatten())  # (window rows, window cols, height, width) -> tokens
            segments.append((region.numel() // (height * width), height * width))
    return torch.cat(orders), tuple(segments)


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # kept for later passes, which may be trained with
def variable_lengths(segments: Segments, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Return where segments begin and end in a flattened batch, in the words of flash kernels."""
    lengths = [length for count, length in segments for _ in range(count)] * batch_size
    boundaries = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    return dict(zip(names, (boundaries, boundaries, max(lengths), max(lengths)), strict=True))


@dataclass(frozen=True)
class AttentionLayout:
    """Attention pattern of one forward pass.

    Attributes:
        global_segments: Runs of the whole sequence in blocks with global attention.
        window_order: `(num_patches,)`, positions of the patch tokens in the sequence, window after window; `None`
            when every block is global. Prefix tokens sit out the windowed blocks (C-RADIOv4 3.2).
        window_segments: Runs of the sequence in `window_order`.
    """

    global_segments: Segments
    window_order: Tensor | None = None
    window_segments: Segments = ()

    @classmethod
    def for_grid(
        cls, rows: int, cols: int, num_prefix: int, window_size: int | None, device: torch.device
    ) -> "AttentionLayout":
        """Return the layout of a batch of images of one size."""
        global_segments = ((1, num_prefix + rows * cols),)
        if window_size is None:
            return cls(global_segments)
        order, segments = partition_windows(rows, cols, window_size, device)
        return cls(global_segments, num_prefix + order, segments)


class ImagePack:
    """Order of a packed sequence: images sorted by grid, each as prefix tokens and patches.

    Args:
        image_grid_hw: Rows and columns of patches of each image, `(num_images, 2)`.
        num_prefix: Prefix tokens of each image.

    Attributes:
        grids: Rows and columns of patches of each image, in the order of the call.
        groups: By grid, the positions of its images in the call.
    """

    def __init__(self, image_grid_hw: Tensor, num_prefix: int) -> None:
        self.num_prefix = num_prefix
        self.grids = [Resolution(int(rows), int(cols)) for rows, cols in image_grid_hw.tolist()]
        self.groups: dict[Resolution, list[int]] = {}
        for image, grid in enumerate(self.grids):
            self.groups.setdefault(grid, []).append(image)

    @property
    def largest_grid(self) -> Resolution:
        """Rows and columns of patches of the image with most of them."""
        return max(self.grids, key=lambda grid: grid.height * grid.width)

    @property
    def runs(self) -> Segments:
        """The sequence as runs of images of one grid."""
        return tuple((len(images), self.num_prefix + rows * cols) for (rows, cols), images in self.groups.items())

    def group_patches(self, patches: Tensor) -> list[Tensor]:
        """Gather `(total_patches, ...)` in the order of the call into `(images, rows * cols, ...)` per group."""
        by_image = patches.split([rows * cols for rows, cols in self.grids])
        return [torch.stack([by_image[image] for image in images]) for images in self.groups.values()]

    def group_sequence(self, sequence: Tensor) -> list[Tensor]:
        """Cut a packed sequence `(1, length, hidden)` into `(images, prefix + rows * cols, hidden)` per group."""
        parts = sequence[0].split([count * length for count, length in self.runs])
        return [part.unflatten(0, run) for part, run in zip(parts, self.runs, strict=True)]

    def ungroup(self, grouped: list[Tensor]) -> list[Tensor]:
        """Return one tensor per image, in the order of the call, from one tensor `(images, ...)` per group."""
        by_image: dict[int, Tensor] = {}
        for images, tensor in zip(self.groups.values(), grouped, strict=True):
            by_image.update(zip(images, tensor.unbind(0), strict=True))
        return [by_image[image] for image in range(len(self.grids))]

    def spread(self, by_image: Tensor) -> Tensor:
        """Return `(1, length, ...)`, for each token of the sequence its image's entry of `(images, 1, ...)`."""
        images = [image for images in self.groups.values() for image in images]
        counts = [length for count, length in self.runs for _ in range(count)]
        return by_image[images, 0].repeat_interleave(torch.tensor(counts, device=by_image.device), dim=0).unsqueeze(0)

    def concatenate(self, sequence: Tensor) -> Tensor:
        """Return a packed sequence as `(length, hidden)`, image after image in the order of the call."""
        return torch.cat(self.ungroup(self.group_sequence(sequence)))

    def layout(self, window_size: int | None, device: torch.device) -> AttentionLayout:
        """Return which tokens of the packed sequence attend to each other."""
        if window_size is None:
            return AttentionLayout(self.runs)
        orders, window_segments, offset = [], [], 0
        for grid, (count, length) in zip(self.groups, self.runs, strict=True):
            starts = offset + self.num_prefix + length * torch.arange(count, device=device)
            order, windows = partition_windows(*grid, window_size, device)
            sizes = [num_windows * size for num_windows, size in windows]
            for run, (num_windows, size) in zip(order.split(sizes), windows, strict=True):
                orders.append((starts[:, None] + run).flatten())
                window_segments.append((count * num_windows, size))
            offset += count * length
        return AttentionLayout(self.runs, torch.cat(orders), tuple(window_segments))


class RadioLearnedTokens(nn.Module):
    """Base of modules whose own parameters are learned tokens, `(..., tokens, hidden)`.

    New ones are drawn from a normal distribution with deviation hidden^-0.5.
    """


class RadioPrefixTokens(RadioLearnedTokens):
    """Puts learned tokens, class tokens first, before others: `(batch, length, hidden)` to `prefix + length`."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(config.num_prefix_tokens, config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)


class RadioPatchGenerator(RadioLearnedTokens):
    """Turns patches into tokens: linear projection, position embedding, prefix tokens.

    The position table covers `max_img_size`. In training each image sees a random crop of it, stretched over its own
    grid, so that the network meets every scale; in evaluation the table is resized to the longer side of the grid and
    cropped top-left.

    Shapes of `forward`: patches `(batch, rows * cols, channels * patch * patch)` (see `split_patches`), their rows and
    columns, and in training the numbers of `sample_positions` (`None` takes them from torch's global generator), to
    tokens `(batch, prefix + rows * cols, hidden)`; or all patches of a pack, `(total_patches, ...)`, to its sequence.
    With `temporal` the patches are of several frames each, their channels one frame after the other. Without rows and
    columns it takes normalized images, `(batch, channels, height, width)`, as NVIDIA's does.

    References:
        Cropped position embeddings: AM-RADIO, appendix C. https://arxiv.org/abs/2312.06709
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_size, self.num_skip = config.patch_size, config.num_prefix_tokens
        self.num_cls_tokens, self.num_registers = config.num_cls_tokens, config.num_registers
        self.embedder = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size, config.use_patch_bias)
        if config.video_temporal_patch_size is not None:
            width = config.video_temporal_patch_size * config.num_channels * config.patch_size**2
            self.video_embedder = nn.Linear(width, config.hidden_size, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(1, config.position_grid_size**2, config.hidden_size))
        self.cls_token = RadioPrefixTokens(config)
        self.resized = PositionCache()

    def forward(
        self,
        patches: Tensor,
        rows: int | None = None,
        cols: int | None = None,
        draws: Tensor | None = None,
        pack: ImagePack | None = None,
        temporal: bool = False,
    ) -> Tensor:
        if rows is None or cols is None:
            rows, cols = (side // self.config.patch_size for side in patches.shape[-2:])
            patches = self.split_patches(patches)
        embedder = self.video_embedder if temporal else self.embedder
        tokens = embedder(patches.to(self.pos_embed.dtype))  # the weight itself may be quantized
        if pack is None:
            return self._add_positions(tokens, rows, cols, draws)
        groups = [
            self._add_positions(group, *grid, None if draws is None else draws[images]).flatten(0, 1)
            for (grid, images), group in zip(pack.groups.items(), pack.group_patches(tokens), strict=True)
        ]
        return torch.cat(groups).unsqueeze(0)

    def _add_positions(self, tokens: Tensor, rows: int, cols: int, draws: Tensor | None) -> Tensor:
        if self.training and self.config.use_cropped_positions:
            if draws is None:
                draws = torch.rand(tokens.shape[0], POSITION_DRAWS, device=self.pos_embed.device)
            positions = self.sample_positions(rows, cols, draws)
        else:
            positions = self.resized_positions(rows, cols)
        # In the table's precision: under autocast tokens stay float32 through all blocks, whose branches are lower.
        return self.cls_token(tokens + positions.to(self.pos_embed.dtype))

    def split_patches(self, pixel_values: Tensor) -> Tensor:
        """Cut images into flattened patches `(batch, rows * cols, channels * patch * patch)`, channel-major."""
        batch_size, channels, height, width = pixel_values.shape
        size = self.config.patch_size
        patches = pixel_values.reshape(batch_size, channels, height // size, size, width // size, size)
        # (batch, channels, rows, size, cols, size) -> (batch, rows, cols, channels, size, size)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, channels * size * size)

    def sample_positions(self, rows: int, cols: int, uniform: Tensor) -> Tensor:
        """Return positions of a random crop of the table for each image, `(batch, rows * cols, hidden)` in float32.

        Args:
            rows: Rows of patches of each image.
            cols: Columns of patches.
            uniform: Numbers in [0, 1) that decide the crops, `(batch, POSITION_DRAWS)`.
        """
        side = self.config.position_grid_size
        scale = math.sqrt(MIN_CROP_AREA) + uniform[:, 0] * (1 - math.sqrt(MIN_CROP_AREA))
        aspect = torch.exp((2 * uniform[:, 1] - 1) * math.log(MAX_CROP_ASPECT))
        extent = torch.stack([scale * aspect, scale / aspect], dim=1).clamp(max=1)  # (batch, xy), of the table
        offset = uniform[:, 2:] * (1 - extent)
        x, x_shares = _neighbors(_even_coordinates(cols, offset[:, :1], extent[:, :1]), side)
        y, y_shares = _neighbors(_even_coordinates(rows, offset[:, 1:], extent[:, 1:]), side)
        # (batch, rows, cols, two rows of the table, two columns of it)
        index = y[:, :, None, :, None] * side + x[:, None, :, None, :]
        shares = y_shares[:, :, None, :, None] * x_shares[:, None, :, None, :]
        # Not grid_sample, whose backward pass writes a whole table for every image.
        table, weights = self.pos_embed[0].float(), shares.view(-1, 4)
        sampled = F.embedding_bag(index.view(-1, 4), table, mode="sum", per_sample_weights=weights)
        return sampled.unflatten(0, (len(uniform), rows * cols))

    def resized_positions(self, rows: int, cols: int) -> Tensor:
        """Return the evaluation position embeddings `(1, rows * cols, hidden)` of a grid.

        On the CPU and without gradients what was resized is kept until the table changes. Elsewhere resizing costs less
        than finding out whether it did, for which the host would wait for the device.
        """
        table = self.pos_embed
        if is_compiling_or_tracing() or table.device.type != "cpu" or (torch.is_grad_enabled() and table.requires_grad):
            return self._resize_positions(rows, cols)
        return self.resized.get(table, (rows, cols, table.dtype), lambda: self._resize_positions(rows, cols))

    def _resize_positions(self, rows: int, cols: int) -> Tensor:
        table = self.pos_embed.unflatten(1, 2 * (self.config.position_grid_size,))
        align_corners = self.config.pos_embed_align_corners
        if not self.config.use_cropped_positions:
            return resize_position_table(table[:, :rows, :cols], rows, cols, align_corners).to(table.dtype)
        side = _longer(rows, cols)
        tokens = resize_position_table(table, side, side, align_corners).to(table.dtype)
        # Cropped by index, not by slice: under export a slice would tie the strides to the grid's shape.
        row, col = (torch.arange(size, device=tokens.device) for size in (rows, cols))
        return tokens[:, (row[:, None] * side + col).flatten()]


PATH_DRAWS = 2
"""Random numbers that decide which of a block's branches one image skips: attention, MLP."""


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Plain attention that also returns its weights; arguments are those of transformers' attention functions.

    Query, key and value have the shape `(batch, heads, length, head_dim)`, the mixed values `(batch, length, heads,
    head_dim)` and the weights `(batch, heads, length, length)`. There is never a mask: segments take its place.
    """
    weights = F.dropout((query @ key.transpose(2, 3) * scaling).softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class RadioAttention(nn.Module):
    """Multi-head self-attention within segments of the sequence.

    Shapes of `forward`: hidden states `(batch, length, hidden)` to the same. `segments` `None` are the whole sequence.
    With `record` attention is eager, and `record` is called with the weights of each run of segments,
    `(batch * count, heads, segment, segment)`. It has all names of timm's attention, also of layers that do nothing.
    """

    is_causal, fused_attn = False, True

    def __init__(self, config: RadioConfig, num_heads: int, qkv_bias: bool, hidden_size: int | None = None) -> None:
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.config = config
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.scaling = self.scale = self.head_dim**-0.5
        self.attn_drop, self.proj_drop = nn.Dropout(config.attention_probs_dropout_prob), nn.Identity()
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, segments: Segments | None = None, record: Record | None = None) -> Tensor:
        return self.mix(self.project(hidden_states), segments, record)

    def mix(self, qkv: Tensor, segments: Segments | None = None, record: Record | None = None) -> Tensor:
        """Return the output of `forward` for what `project` returned."""
        batch_size, is_eager = qkv.shape[0], record is not None
        segments = segments or ((1, qkv.shape[1]),)
        if len(segments) == 1:
            outputs = [self._attend(qkv, segments[0][0], is_eager)]
        elif not is_eager and is_flash_attention_requested(self.config):  # one call for segments of unequal lengths
            lengths = variable_lengths(segments, batch_size, qkv.device)
            outputs = [self._attend(qkv.flatten(0, 1).unsqueeze(0), 1, False, **lengths)]
        else:
            runs = qkv.split([count * size for count, size in segments], dim=1)
            outputs = [self._attend(run, count, is_eager) for run, (count, _) in zip(runs, segments, strict=True)]
        mixed = [output.reshape(batch_size, -1, self.num_heads * self.head_dim) for output, _ in outputs]
        for _, weights in outputs if record is not None else ():
            cast(Record, record)(cast(Tensor, weights))  # eager attention gives them
        return self.proj(torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0])

    def project(self, hidden_states: Tensor) -> Tensor:
        """Return queries, keys and values, `(batch, length, 3, heads, head_dim)`."""
        return self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))

    def _attend(self, qkv: Tensor, count: int, is_eager: bool, **lengths: Any) -> tuple[Tensor, Tensor | None]:
        """Attend within `count` equal segments of `qkv`, `(batch, count * segment, 3, heads, head_dim)`.

        Returns the mixed values `(batch * count, segment, heads, head_dim)` and the weights, as the function that the
        configuration names gives them, or eager attention. The former takes `lengths` of several segments in one.
        """
        length = qkv.shape[1] // count
        # -> (3, batch * count, heads, segment, head_dim)
        by_head = qkv.reshape(-1, length, *qkv.shape[2:]).permute(2, 0, 3, 1, 4)
        query, key, value = by_head.unbind(0)
        implementation = "eager" if is_eager else str(self.config._attn_implementation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.attn_drop.p if self.training else 0.0
        return attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout, **lengths)


def attend_by_segment(attention: nn.Module, hidden_states: Tensor, segments: Segments) -> Tensor:
    """Run an attention that knows no segments on each of them, as a sequence of its batch."""
    runs = hidden_states.split([count * length for count, length in segments], dim=1)
    batches = [run.unflatten(1, each).flatten(0, 1) for run, each in zip(runs, segments, strict=True)]
    mixed = [attention(batch).reshape(run.shape) for batch, run in zip(batches, runs, strict=True)]
    return torch.cat(mixed, dim=1)


class RadioMLP(nn.Module):
    """Two linear layers with an activation between; widths `hidden_size`, `width`, `hidden_size`.

    On a CPU and without gradients GELU overwrites its input, which spares the time to get as much memory again.
    Without this a pass of ViT-B takes up to 6 % longer (float32, one thread of an AMD EPYC, 2026-12-01).
    """

    def __init__(self, config: RadioConfig, width: int, hidden_size: int | None = None) -> None:
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.fc1 = nn.Linear(hidden_size, width)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        wide = self.fc1(hidden_states)
        return self.fc2(torch.ops.aten.gelu_(wide) if self._may_overwrite(wide) else self.act(wide))

    def _may_overwrite(self, wide: Tensor) -> bool:
        """Return whether exact GELU is all that reads its input: no gradients, hooks or recorded pass do."""
        is_plain = type(wide) is Tensor and wide.device.type == "cpu" and not wide.requires_grad
        hooks = self.fc1._forward_hooks, self.act._forward_pre_hooks, self.act._forward_hooks
        is_gelu = type(self.act) is GELUActivation and self.act.act is F.gelu
        return is_plain and is_gelu and not any(hooks) and not is_compiling_or_tracing()


class RadioSwiGLU(nn.Module):
    """SwiGLU MLP as in DINOv2's ViT-g: gate and value in one linear, two thirds of the width rounded up to 8."""

    def __init__(self, config: RadioConfig, width: int) -> None:
        super().__init__()
        width = (int(width * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(config.hidden_size, 2 * width)
        self.w3 = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, value = self.w12(hidden_states).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class RadioLayerScale(nn.Module):
    """Learned factor per channel; `grandma` is the name that NVIDIA's checkpoints give it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.grandma = nn.Parameter(torch.empty(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.grandma


class RadioBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block; adaptors and RADIO1D have some with an attention and an MLP of their own.

    Width of the tokens, and whether there is LayerScale, are the configuration's where they are not given.

    Shapes of `forward`: hidden states `(batch, length, hidden)`, and in stochastic depth factors on the attention and
    the MLP of each image, `(batch, 1, PATH_DRAWS)`, or each token, `(batch, length, PATH_DRAWS)`, to hidden states of
    the same shape. The factors are an argument, since gradient checkpointing replays those. `segments` and `record` are
    those of `RadioAttention`.

    `attn` may be another module, of tokens `(batch, length, hidden)` alone to the same: each segment is then a sequence
    of its batch. It records no weights.
    """

    def __init__(
        self,
        config: RadioConfig,
        attention: RadioAttention | None = None,
        mlp: RadioMLP | None = None,
        use_layer_scale: bool | None = None,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        has_layer_scale = config.use_layer_scale if use_layer_scale is None else use_layer_scale
        layer_scale = RadioLayerScale if has_layer_scale else nn.Identity
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attn = attention or RadioAttention(config, config.num_attention_heads, config.qkv_bias)
        self.ls1 = layer_scale(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        own_mlp = RadioSwiGLU if config.use_swiglu_ffn else RadioMLP
        self.mlp = mlp or own_mlp(config, config.intermediate_size)
        self.ls2 = layer_scale(hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        segments: Segments | None = None,
        factors: Tensor | None = None,
        record: Record | None = None,
    ) -> Tensor:
        normed = self.norm1(hidden_states)
        if isinstance(self.attn, RadioAttention):
            branch = self.attn(normed, segments, record)
        else:
            branch = attend_by_segment(self.attn, normed, segments or ((1, normed.shape[1]),))
        hidden_states = hidden_states + self._scale(self.ls1(branch), factors, 0)
        branch = self.mlp(self.norm2(hidden_states))
        return hidden_states + self._scale(self.ls2(branch), factors, 1)

    def _scale(self, branch: Tensor, factors: Tensor | None, index: int) -> Tensor:
        return branch if factors is None else branch * factors[:, :, index, None].to(branch.dtype)


class RadioVisionTransformer(nn.Module):
    """Patch generator, blocks and, in the DINOv2-shaped models, a final norm."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        depth, self.embed_dim = config.num_hidden_layers, config.hidden_size
        self.patch_generator = RadioPatchGenerator(config)
        self.blocks = nn.ModuleList(self.build_block(config, index) for index in range(depth))
        final_norm = nn.LayerNorm if config.use_final_norm else nn.Identity
        self.norm = final_norm(config.block_hidden_size(depth - 1), eps=config.layer_norm_eps)
        self.is_global = [config.is_global_block(index) for index in range(depth)]
        self.drop_path_rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]

    def build_block(self, config: RadioConfig, index: int) -> RadioBlock:
        """Return a new block for the 0-based position `index`; here all are alike."""
        return RadioBlock(config)

    def forward(
        self,
        hidden_states: Tensor,
        layout: AttentionLayout,
        keep: Collection[int] = (),
        draws: Tensor | None = None,
        with_attentions: bool = False,
    ) -> tuple[Tensor, dict[int, Tensor], list[list[Tensor]]]:
        """Run the blocks.

        Args:
            hidden_states: Tokens from the patch generator, `(batch, length, hidden)`.
            layout: Layout that says which tokens attend to each other.
            keep: 0-based blocks whose output is wanted too.
            draws: Uniform numbers in [0, 1) that decide dropped paths in training, `(batch, 1 or length, blocks,
                PATH_DRAWS)`, of a whole image or token by token; `None` takes them from torch's global generator.
            with_attentions: Whether to return attention weights, for which attention is eager.

        Returns:
            The normed output `(batch, length, hidden)`, the un-normed output of each block in `keep`, and of each block
            the attention weights of each run of its segments, as in `RadioAttention`.
        """
        kept, attentions = {}, [[] for _ in self.blocks]
        patches = hidden_states
        for index, block in enumerate(self.blocks):
            record = attentions[index].append if with_attentions else None
            factors = self.path_factors(index, hidden_states, None if draws is None else draws[:, :, index])
            if layout.window_order is None or self.is_global[index]:
                hidden_states = block(hidden_states, layout.global_segments, factors, record)
            else:
                if index == 0 or self.is_global[index - 1]:
                    patches = hidden_states[:, layout.window_order.to(hidden_states.device)]
                if factors is not None and factors.shape[1] > 1:
                    factors = factors[:, layout.window_order.to(factors.device)]
                patches = block(patches, layout.window_segments, factors, record)
                if index in keep or self.is_global[index + 1]:  # the last block is global, so there is a next one
                    order = layout.window_order.to(patches.device)  # blocks may be spread over devices
                    hidden_states = hidden_states.to(patches.device).index_copy(1, order, patches)
            if index in keep:
                kept[index] = hidden_states
        return self.norm(hidden_states), kept, attentions

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the final tokens of normalized images, `(batch, channels, height, width)`, by global attention."""
        x = self.patch_generator(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def path_factors(self, index: int, hidden_states: Tensor, uniform: Tensor | None) -> Tensor | None:
        """Return the factors of stochastic depth on a block's branches, of the shape of `uniform`; `None` if all are 1.

        A branch is left out where its uniform number is below the block's rate, and scaled up elsewhere, so that the
        mean stays (https://arxiv.org/abs/1603.09382).
        """
        rate = self.drop_path_rates[index]
        if not self.training or not rate:
            return None
        if uniform is None:
            images, device = hidden_states.shape[0], hidden_states.device
            uniform = torch.stack([torch.rand(images, 1, device=device) for _ in range(PATH_DRAWS)], dim=2)
        return (uniform >= rate).to(hidden_states.dtype) / (1 - rate)


class RadioFeatureNormalizer(nn.Module):
    """Shifts and rotates final features, `(..., hidden)`, into a standardized space (some RADIOv2.5 checkpoints)."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("tx", torch.eye(config.hidden_size))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.tx.T


class RadioIntermediateNormalizer(nn.Module):
    """Standardizes features of intermediate blocks: a mean and a scale for each block, one rotation for each or all."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        num_layers, size = config.num_intermediate_normalizers, config.hidden_size
        rotations = (num_layers, 1, 1) if config.intermediate_rotation_per_layer else (1, 1)
        self.register_buffer("alphas", torch.ones(num_layers))
        self.register_buffer("means", torch.zeros(num_layers, size))
        self.register_buffer("rotation", torch.eye(size).repeat(rotations))

    def forward(self, features: Tensor, blocks: list[int]) -> Tensor:
        """Standardize averaged outputs of `blocks`: mean and scale are averaged too, the rotation is the last one's."""
        alpha, mean = self.alphas[blocks].mean(), self.means[blocks].mean(dim=0)
        return alpha * (features - mean) @ self._rotation(blocks[-1]).T

    def scale_each(self, features: list[Tensor], blocks: list[int]) -> Tensor:
        """Center and scale each block's output by its own numbers; average, and rotate by the last block's rotation."""
        scaled = [self.alphas[block] * (part - self.means[block]) for block, part in zip(blocks, features, strict=True)]
        return torch.stack(scaled).mean(dim=0) @ self._rotation(blocks[-1]).T

    def _rotation(self, block: int) -> Tensor:
        return self.rotation if self.rotation.ndim == 2 else self.rotation[block]
