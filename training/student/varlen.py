"""PyTorch's own attention within segments of unequal lengths, `student.attention=varlen_attn`: one call for a pack.

It is one of transformers' attention functions. Its kernel needs a CUDA device, bfloat16 and torch 2.10 or newer.
"""

import importlib.util
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_radio.layers_radio import VARLEN_ATTENTION
from modeling_radio.training.recipes.recipe import Recipe, RecipeError


def varlen_attention(  # noqa: PLR0913 - the arguments of transformers' attention functions
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
) -> tuple[Tensor, None]:
    """Attend within segments; those of equal lengths are a batch, which `sdpa` takes.

    Args:
        module: The attention.
        query: `(batch, heads, length, head_dim)`; `(1, heads, total_length, head_dim)` with lengths.
        key: Same shape.
        value: Same shape.
        attention_mask: None.
        scaling: Factor of the scores.
        dropout: Share of dropped weights; 0 with lengths.
        cu_seq_lens_q: Where segments begin, and the total length, `(num_segments + 1,)` int32; None without lengths.
        cu_seq_lens_k: The same, of the keys.
        max_length_q: Length of the longest segment.
        max_length_k: The same, of the keys.

    Returns:
        The mixed values, `(batch, length, heads, head_dim)`, and no weights.
    """
    if cu_seq_lens_q is None or max_length_q is None or max_length_k is None:
        return sdpa_attention_forward(module, query, key, value, None, dropout=dropout, scaling=scaling)
    from torch.nn.attention.varlen import varlen_attn

    device_type = query.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype
    # (1, heads, total_length, head_dim) -> (total_length, heads, head_dim)
    query, key, value = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))
    lengths = cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k
    mixed = cast(Tensor, varlen_attn(query, key, value, *lengths, scale=scaling))
    return mixed.unsqueeze(0), None


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)


def check_varlen(recipe: Recipe, device: torch.device) -> None:
    """Refuse this attention where its kernel does not run, before anything is built.

    Raises:
        RecipeError: With what is missing.
    """
    if recipe.student.attention != VARLEN_ATTENTION:
        return
    rules = {
        "torch 2.10 or newer": importlib.util.find_spec("torch.nn.attention.varlen") is not None,
        "a CUDA device": device.type == "cuda",
        "`mixed_precision` 'bf16'": recipe.mixed_precision == "bf16",
        "no `student.config.attention_probs_dropout_prob`": not recipe.student.config.get(
            "attention_probs_dropout_prob"
        ),
    }
    missing = [rule for rule, holds in rules.items() if not holds]
    if missing:
        raise RecipeError(
            f"`student.attention` {VARLEN_ATTENTION!r} needs {' and '.join(missing)}; the device is {str(device)!r}. "
            "Use 'sdpa'."
        )
