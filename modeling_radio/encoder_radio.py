"""The vision transformer: attention over segments, MLP or SwiGLU, pre-norm blocks, ViTDet scheduling."""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from .configuration_radio import RadioConfig
from .embeddings_radio import RadioPatchGenerator
from .windows_radio import AttentionLayout, Segments, segment_boundaries


PATH_DRAWS = 2
"""Random numbers that decide which of a block's branches one image skips: attention, MLP."""


def eager_attention_forward(
    module: "RadioAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Plain attention that also returns its weights.

    Args:
        module: The attention layer, for its training mode.
        query: `(batch, heads, length, head_dim)`; `key` and `value` alike.
        key: See `query`.
        value: See `query`.
        attention_mask: Additive mask, or `None`.
        scaling: Factor on the scores.
        dropout: Probability of dropping a weight.

    Returns:
        The mixed values `(batch, length, heads, head_dim)` and the weights `(batch, heads, length, length)`.
    """
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.dropout(weights.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class RadioAttention(nn.Module):
    """Multi-head self-attention within segments of the sequence.

    Shapes of `forward`: hidden states `(batch, length, hidden)` to the same, and per run of `segments` the attention
    weights `(batch * count, heads, segment, segment)`, or `None` where the implementation gives none.
    """

    is_causal = False

    def __init__(
        self, config: RadioConfig, num_attention_heads: int | None = None, qkv_bias: bool | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_attention_heads or config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        bias = config.qkv_bias if qkv_bias is None else qkv_bias
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, segments: Segments) -> tuple[Tensor, list[Tensor | None]]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        if len(segments) == 1:
            outputs = [self._attend(qkv, segments[0][0])]
        elif is_flash_attention_requested(self.config):
            outputs = [self._attend_variable_length(qkv, segments)]
        else:
            runs = qkv.split([count * length for count, length in segments], dim=1)
            outputs = [self._attend(run, count) for run, (count, _) in zip(runs, segments, strict=True)]
        mixed = [output for output, _ in outputs]
        return self.proj(torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]), [weights for _, weights in outputs]

    def _attend(self, qkv: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """Attend within `count` equal segments of `qkv`, `(batch, count * segment, 3, heads, head_dim)`."""
        batch_size, length = qkv.shape[:2]
        # -> (3, batch * count, heads, segment, head_dim)
        query, key, value = qkv.reshape(-1, length // count, *qkv.shape[2:]).permute(2, 0, 3, 1, 4).unbind(0)
        output, weights = self._attention_function()(self, query, key, value, None, **self._attention_options())
        return output.reshape(batch_size, length, -1), weights

    def _attend_variable_length(self, qkv: Tensor, segments: Segments) -> tuple[Tensor, None]:
        """Attend within segments of unequal lengths in one call of a flash kernel."""
        batch_size, length = qkv.shape[:2]
        # (batch, length, 3, heads, head_dim) -> (3, 1, heads, batch * length, head_dim)
        query, key, value = qkv.flatten(0, 1).permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        boundaries = segment_boundaries(segments, batch_size, qkv.device)
        longest = max(segment for _, segment in segments)
        output, _ = self._attention_function()(
            self,
            query,
            key,
            value,
            None,
            cu_seq_lens_q=boundaries,
            cu_seq_lens_k=boundaries,
            max_length_q=longest,
            max_length_k=longest,
            **self._attention_options(),
        )
        return output.reshape(batch_size, length, -1), None

    def _attention_function(self) -> Callable:
        implementation = str(self.config._attn_implementation)
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)

    def _attention_options(self) -> dict[str, float]:
        return {"scaling": self.scaling, "dropout": self.dropout if self.training else 0.0}


class RadioMLP(nn.Module):
    """Two linear layers with an activation between; widths `hidden_size`, `intermediate_size`, `hidden_size`."""

    def __init__(self, config: RadioConfig, intermediate_size: int | None = None) -> None:
        super().__init__()
        width = intermediate_size or config.intermediate_size
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class RadioSwiGLU(nn.Module):
    """SwiGLU MLP as in DINOv2's ViT-g: gate and value in one linear, two thirds of the width rounded up to 8."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        width = (int(config.intermediate_size * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(config.hidden_size, 2 * width)
        self.w3 = nn.Linear(width, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, value = self.w12(hidden_states).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class RadioLayerScale(nn.Module):
    """Learned factor per channel; `grandma` is the name that NVIDIA's checkpoints give it."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.grandma = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.grandma


class RadioDropPath(nn.Module):
    """Stochastic depth: in training leaves a residual branch out for some images, and scales it up for the others.

    Shapes of `forward`: branch `(batch, length, hidden)` and uniform numbers in [0, 1) that decide, `(batch,)` (`None`
    takes them from torch's global generator), to the same shape as the branch.

    References:
        https://arxiv.org/abs/1603.09382
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, draws: Tensor | None = None) -> Tensor:
        if not self.training or not self.rate:
            return branch
        if draws is None:
            draws = torch.rand(len(branch), device=branch.device)
        factor = (draws >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * factor[:, None, None]


class RadioBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block; `(batch, length, hidden)` to the same.

    `draws`, `(batch, PATH_DRAWS)`, decide which images skip its two branches, as in `RadioDropPath`.
    """

    def __init__(self, config: RadioConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = RadioAttention(config)
        self.ls1 = RadioLayerScale(config) if config.use_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RadioSwiGLU(config) if config.use_swiglu_ffn else RadioMLP(config)
        self.ls2 = RadioLayerScale(config) if config.use_layer_scale else nn.Identity()
        self.drop_path = RadioDropPath(drop_path_rate)

    def forward(self, hidden_states: Tensor, segments: Segments, draws: Tensor | None = None) -> Tensor:
        first, second = (None, None) if draws is None else draws.unbind(1)
        attended, _ = self.attn(self.norm1(hidden_states), segments)
        hidden_states = hidden_states + self.drop_path(self.ls1(attended), first)
        return hidden_states + self.drop_path(self.ls2(self.mlp(self.norm2(hidden_states))), second)


class RadioVisionTransformer(nn.Module):
    """Patch generator, blocks and, in the DINOv2-shaped models, a final norm."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        self.patch_generator = RadioPatchGenerator(config)
        self.blocks = nn.ModuleList(
            RadioBlock(config, config.drop_path_rate * index / max(depth - 1, 1)) for index in range(depth)
        )
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_final_norm else nn.Identity()
        )
        self.is_global = [config.is_global_block(index) for index in range(depth)]

    def forward(
        self,
        hidden_states: Tensor,
        layout: AttentionLayout,
        keep: Collection[int] = (),
        draws: Tensor | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks.

        Args:
            hidden_states: Tokens from the patch generator, `(batch, length, hidden)`.
            layout: Which tokens attend to each other.
            keep: 0-based blocks whose output is wanted too.
            draws: Uniform numbers in [0, 1) that decide dropped paths in training, `(batch, blocks * PATH_DRAWS)`;
                `None` takes them from torch's global generator.

        Returns:
            The normed output `(batch, length, hidden)`, and the un-normed output of each block in `keep`.
        """
        kept = {}
        patches = hidden_states
        for index, block in enumerate(self.blocks):
            block_draws = None if draws is None else draws[:, index * PATH_DRAWS : (index + 1) * PATH_DRAWS]
            if layout.window_order is None or self.is_global[index]:
                hidden_states = block(hidden_states, layout.global_segments, block_draws)
            else:
                if index == 0 or self.is_global[index - 1]:
                    patches = hidden_states[:, layout.window_order]
                patches = block(patches, layout.window_segments, block_draws)
                if index in keep or self.is_global[index + 1]:  # the last block is global, so there is a next one
                    hidden_states = hidden_states.index_copy(1, layout.window_order, patches)
            if index in keep:
                kept[index] = hidden_states
        return self.norm(hidden_states), kept
