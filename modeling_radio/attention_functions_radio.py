"""Attention functions of our own, with the arguments and shapes of transformers' own: plain, and in blocks on a CPU."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings_radio import is_recorded


SCORES_OF_A_BLOCK = 2**21
"""Scores that attention in blocks holds at once. Our choice, as measured on an AMD EPYC (docs/benchmarks.md): 4 MiB in
bfloat16 stay in its caches, and the products are large enough to be fast."""
SAMPLED_KEYS = 16
"""Keys, evenly apart, whose mean stands for that of all. Our choice: as good, and costs nothing."""
LEAST_SCORES = 2**18
"""Scores of a call from which on blocks save more time than their small steps take. Our choice: a few windows stay with
PyTorch's kernel, a whole image of 224 px does not."""
MOST_THREADS = 2
"""Threads up to which blocks, one after the other, were measured to be faster; PyTorch's kernel shares heads out among
any number."""


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


@cache
def multiplies_bfloat16() -> bool:
    """Return whether this CPU has fast products of bfloat16 (AVX512-BF16) and no tiles for them (AMX).

    With tiles, PyTorch's own attention makes use of them; without either, bfloat16 is slow whatever one does.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def is_faster_in_blocks(query: Tensor) -> bool:
    """Return whether `blocked_attention_forward` is the fastest way to do without gradients what SDPA does.

    By the query, `(batch, heads, length, head_dim)`. Not where somebody chose a kernel of SDPA:
    `torch.nn.attention.sdpa_kernel` means what it says.
    """
    is_bfloat16 = type(query) is Tensor and query.device.type == "cpu" and query.dtype == torch.bfloat16
    if not is_bfloat16 or is_recorded() or query.requires_grad or _is_kernel_chosen():
        return False
    scores = query.shape[:3].numel() * query.shape[2]
    return scores >= LEAST_SCORES and torch.get_num_threads() <= MOST_THREADS and multiplies_bfloat16()


def _is_kernel_chosen() -> bool:
    kernels = torch.backends.cuda  # of a CPU too
    return not (kernels.flash_sdp_enabled() and kernels.mem_efficient_sdp_enabled() and kernels.math_sdp_enabled())


def blocked_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Exact attention by plain products, as many scores at a time as the processor's caches hold; without dropout.

    On a CPU with AVX512-BF16 it takes two thirds of the time of PyTorch's kernel (docs/benchmarks.md). Scores are
    rounded to the inputs' type; keys lose the mean of some before, which adds one number to all scores of a row and so
    changes no weight, lest that number take the digits. Shapes are those of `eager_attention_forward`, which it equals
    but for rounding; it returns no weights.
    """
    batch, heads, length = query.shape[:3]
    key = key - key[:, :, :: max(1, length // SAMPLED_KEYS)].mean(dim=2, keepdim=True)
    query, key, value = (query * scaling).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    rows = min(length, max(1, SCORES_OF_A_BLOCK // length))  # of one head
    together = max(1, SCORES_OF_A_BLOCK // length**2)  # heads
    mixed = []
    for queries, keys, values in zip(*(tensor.split(together) for tensor in (query, key, value)), strict=True):
        keys = keys.transpose(1, 2)
        blocks = [torch.bmm(torch.bmm(block, keys).softmax(dim=-1), values) for block in queries.split(rows, dim=1)]
        mixed.append(torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0])
    return torch.cat(mixed).unflatten(0, (batch, heads)).transpose(1, 2), None
