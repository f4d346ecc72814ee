"""The vision transformer: attention over segments, MLP or SwiGLU, pre-norm blocks, ViTDet scheduling."""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from .configuration_radio import RadioConfig
from .embeddings_radio import RadioPatchGenerator
from .layout_radio import AttentionLayout, Segments, variable_lengths


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

    Shapes of `forward`: hidden states `(batch, length, hidden)` to the same, and per run of `segments` the attention
    weights `(batch * count, heads, segment, segment)`, or `None` where the implementation gives none; eager does.
    """

    is_causal = False

    def __init__(self, config: RadioConfig, num_heads: int, qkv_bias: bool, hidden_size: int | None = None) -> None:
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.config = config
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, segments: Segments, is_eager: bool = False) -> tuple[Tensor, list[Any]]:
        batch_size = hidden_states.shape[0]
        qkv = self.project(hidden_states)
        if len(segments) == 1:
            outputs = [self._attend(qkv, segments[0][0], is_eager)]
        elif not is_eager and is_flash_attention_requested(self.config):  # one call for segments of unequal lengths
            lengths = variable_lengths(segments, batch_size, qkv.device)
            outputs = [self._attend(qkv.flatten(0, 1).unsqueeze(0), 1, False, **lengths)]
        else:
            runs = qkv.split([count * size for count, size in segments], dim=1)
            outputs = [self._attend(run, count, is_eager) for run, (count, _) in zip(runs, segments, strict=True)]
        mixed = [output.reshape(batch_size, -1, hidden_states.shape[-1]) for output, _ in outputs]
        return self.proj(torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]), [weights for _, weights in outputs]

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
        query, key, value = qkv.reshape(-1, length, *qkv.shape[2:]).permute(2, 0, 3, 1, 4).unbind(0)
        implementation = "eager" if is_eager else str(self.config._attn_implementation)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        return attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout, **lengths)


class RadioMLP(nn.Module):
    """Two linear layers with an activation between; widths `hidden_size`, `width`, `hidden_size`."""

    def __init__(self, config: RadioConfig, width: int, hidden_size: int | None = None) -> None:
        super().__init__()
        hidden_size = hidden_size or config.hidden_size
        self.fc1 = nn.Linear(hidden_size, width)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


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
    the same shape, and to attention weights as in `RadioAttention` where they are wanted. The factors are an argument,
    since gradient checkpointing replays those.
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
        self, hidden_states: Tensor, segments: Segments, factors: Tensor | None = None, with_attentions: bool = False
    ) -> tuple[Tensor, list[Any]]:
        branch, weights = self.attn(self.norm1(hidden_states), segments, with_attentions)
        if not with_attentions:
            weights = []  # those of eager attention are large: not kept while the MLP runs
        hidden_states = hidden_states + self._scale(self.ls1(branch), factors, 0)
        branch = self.mlp(self.norm2(hidden_states))
        return hidden_states + self._scale(self.ls2(branch), factors, 1), weights

    def _scale(self, branch: Tensor, factors: Tensor | None, index: int) -> Tensor:
        return branch if factors is None else branch * factors[:, :, index, None].to(branch.dtype)


class RadioVisionTransformer(nn.Module):
    """Patch generator, blocks and, in the DINOv2-shaped models, a final norm."""

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        self.patch_generator = RadioPatchGenerator(config)
        self.blocks = nn.ModuleList(self.build_block(config, index) for index in range(depth))
        final_norm = nn.LayerNorm if config.use_final_norm else nn.Identity
        self.norm = final_norm(config.block_hidden_size(depth - 1), eps=config.layer_norm_eps)
        self.is_global = [config.is_global_block(index) for index in range(depth)]
        self.drop_path_rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]

    def build_block(self, config: RadioConfig, index: int) -> RadioBlock:
        """Return a new block for the 0-based place `index`; here all are alike."""
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
            layout: Which tokens attend to each other.
            keep: 0-based blocks whose output is wanted too.
            draws: Uniform numbers in [0, 1) that decide dropped paths in training, `(batch, 1 or length, blocks,
                PATH_DRAWS)`, of a whole image or token by token; `None` takes them from torch's global generator.
            with_attentions: Whether to return attention weights, for which attention is eager.

        Returns:
            The normed output `(batch, length, hidden)`, the un-normed output of each block in `keep`, and of each block
            the attention weights of each run of its segments, as in `RadioAttention`.
        """
        kept, attentions = {}, []
        patches = hidden_states
        for index, block in enumerate(self.blocks):
            factors = self.path_factors(index, hidden_states, None if draws is None else draws[:, :, index])
            if layout.window_order is None or self.is_global[index]:
                hidden_states, weights = block(hidden_states, layout.global_segments, factors, with_attentions)
            else:
                if index == 0 or self.is_global[index - 1]:
                    patches = hidden_states[:, layout.window_order.to(hidden_states.device)]
                if factors is not None and factors.shape[1] > 1:
                    factors = factors[:, layout.window_order.to(factors.device)]
                patches, weights = block(patches, layout.window_segments, factors, with_attentions)
                if index in keep or self.is_global[index + 1]:  # the last block is global, so there is a next one
                    order = layout.window_order.to(patches.device)  # blocks may be spread over devices
                    hidden_states = hidden_states.to(patches.device).index_copy(1, order, patches)
            attentions.append(weights)
            if index in keep:
                kept[index] = hidden_states
        return self.norm(hidden_states), kept, attentions

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
