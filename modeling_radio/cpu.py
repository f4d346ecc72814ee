"""Faster inference on a CPU, for those who choose it: attention in blocks, and prepacked weights.

`attn_implementation="cpu_blocks"`, which importing this package makes known to transformers, and `prepack` work on any
RADIO model, also one that was opened by remote code. This file is of the package alone: saved folders have no copy.
What both are worth says docs/explanation/benchmarks.md.
"""

import copy
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .layers_radio import is_compiling_or_tracing


CPU_BLOCKS = "cpu_blocks"
"""The `attn_implementation` of `cpu_attention_forward`."""

SCORES_OF_A_BLOCK = 2**21
"""Scores that attention in blocks holds at once. Our choice, measured on an AMD EPYC (docs/explanation/benchmarks.md):
4 MiB in bfloat16 stay in its caches, and the products are large enough to be fast."""
SAMPLED_KEYS = 16
"""Keys, evenly apart, whose mean stands for that of all. Our choice: as good, and costs nothing."""
LEAST_SCORES = 2**18
"""Scores of a call from which on blocks save more time than their small steps take. Our choice: a few windows stay with
PyTorch's kernel, a whole image of 224 px does not."""
LONG_SEGMENT = 1024
"""Fewest tokens for which a CPU attends faster when the queries, keys and values of each head stand together in
memory. Our choice: measured on an AMD EPYC (docs/explanation/benchmarks.md) and an Intel Xeon (docs/log.md)."""
MOST_THREADS = 2
"""Threads up to which blocks, one after the other, were measured to be faster; PyTorch's kernel shares heads out among
any number."""

AGAIN = "Open the model again with `from_pretrained` and leave out `prepack`."


# Attention in blocks


def cpu_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend in blocks where that is faster, else by PyTorch's kernel; arguments are those of transformers' functions.

    Query, key and value have the shape `(batch, heads, length, head_dim)`, the mixed values `(batch, length, heads,
    head_dim)`; there are no weights. Blocks are faster in bfloat16 without gradients, on a CPU with AVX512-BF16 and
    without AMX, with at most `MOST_THREADS` threads. In all other cases results are those of "sdpa" to the bit.
    """
    if query.device.type == "cpu" and not is_compiling_or_tracing() and query.shape[2] >= LONG_SEGMENT:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    is_plain = attention_mask is None and is_causal is None and not dropout and not module.training
    if is_plain and scaling is not None and is_faster_in_blocks(query):
        return blocked_attention_forward(query, key, value, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
    )


def is_faster_in_blocks(query: Tensor) -> bool:
    """Return whether attention in blocks is the fastest way, by the query, `(batch, heads, length, head_dim)`."""
    is_bfloat16 = type(query) is Tensor and query.device.type == "cpu" and query.dtype == torch.bfloat16
    if not is_bfloat16 or is_compiling_or_tracing() or query.requires_grad:
        return False
    scores = query.shape[:3].numel() * query.shape[2]
    return scores >= LEAST_SCORES and torch.get_num_threads() <= MOST_THREADS and multiplies_bfloat16()


@cache
def multiplies_bfloat16() -> bool:
    """Return whether this CPU has fast products of bfloat16 (AVX512-BF16) and no tiles for them (AMX).

    With tiles, PyTorch's own attention makes use of them; without either, bfloat16 is slow whatever one does.
    """
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def blocked_attention_forward(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Exact attention by plain products, as many scores at a time as the processor's caches hold.

    On a CPU with AVX512-BF16 it takes two thirds of the time of PyTorch's kernel (docs/explanation/benchmarks.md).
    Scores are rounded to the inputs' type before the softmax. A mean of the keys is subtracted first: the softmax is
    the same without it, and bfloat16 keeps more digits of what is left.

    Args:
        query: `(batch, heads, length, head_dim)`.
        key: Keys of the same shape.
        value: Values of the same shape.
        scaling: Factor of the scores.

    Returns:
        The mixed values, `(batch, length, heads, head_dim)`.
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
    return torch.cat(mixed).unflatten(0, (batch, heads)).transpose(1, 2)


def register_cpu_attention() -> None:
    """Let transformers know `attn_implementation="cpu_blocks"`, whose masks are those of "sdpa"."""
    AttentionInterface.register(CPU_BLOCKS, cpu_attention_forward)
    AttentionMaskInterface.register(CPU_BLOCKS, sdpa_mask)


def choose_cpu_blocks(model: Any) -> None:
    """Let a model on a CPU attend by "cpu_blocks" where it would by "sdpa"; what others chose stays."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(CPU_BLOCKS)


# Prepacked weights


def prepack(model: Any) -> Any:
    """Put the weights of all linear layers in the order in which oneDNN reads them, for inference on a CPU.

    Features stay as they are but for rounding. The model is in evaluation afterwards, gives no gradients, and is
    neither saved nor moved: it was opened for this. Quantized layers stay as they are; a second call changes nothing.

    Args:
        model: A RADIO model, with or without a head.

    Returns:
        The model itself.

    Raises:
        ValueError: If weights are not on the CPU, in a type that oneDNN lacks here, or of a PEFT adapter, if a
            layer has hooks, or PyTorch was built without oneDNN. The model is as it was.
    """
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError("Adapters of peft are not prepacked: call `merge_and_unload()` of the model first.")
    attributes = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear and type(child.weight) is nn.Parameter and type(child.weight.data) is Tensor
    ]
    for module, name in attributes:
        _check_layer(getattr(module, name), name)
    for module, name in attributes:
        setattr(module, name, PrepackedLinear(getattr(module, name)))
    model._block_costs = None  # of `choose_window_size`: other times
    for refusing in (save_pretrained, load_state_dict, _apply):
        setattr(model, refusing.__name__, MethodType(refusing, model))
    return model.eval().requires_grad_(requires_grad=False)


def save_pretrained(self: nn.Module, *_: Any, **__: Any) -> NoReturn:
    """Refuse to save a model whose weights are prepacked, before anything is written."""
    raise RuntimeError(f"`save_pretrained` has no weights to save: they are prepacked. {AGAIN}")


def load_state_dict(self: nn.Module, *_: Any, **__: Any) -> NoReturn:
    """Refuse to load anything into a model whose weights are prepacked."""
    raise RuntimeError(f"`load_state_dict` has no weights to load into: they are prepacked. {AGAIN}")


def _apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Refuse to move or cast a model whose weights are prepacked, before anything of it moves."""
    _check_stays(fn, self.dtype)
    return type(self)._apply(self, fn, recurse)


class _Product(torch.autograd.Function):
    """The product of a prepacked layer. PyTorch has no derivative of it, forward or backward, and says so."""

    @staticmethod
    def forward(_: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class PrepackedLinear(nn.Module):
    """A linear layer for inference whose weight lies in the order in which oneDNN's products read it.

    PyTorch's own layer hands its weight over as it is, so that each call puts it in order anew, or computes with
    another library. What is left of the layer has no parameter: it is not trained, saved or moved.

    Args:
        linear: A layer on a CPU; `weight` and `bias` are taken from it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight: Tensor
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    @torch.compiler.disable
    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`; outside of the graphs of `torch.compile`.

        Raises:
            RuntimeError: If gradients are asked for, or the input has another type or width than the weight.
        """
        if inputs.requires_grad and torch.is_grad_enabled():
            self._refuse("gives no gradients")
        if inputs.dtype != self.weight.dtype:
            self._refuse(f"of {self.weight.dtype} cannot read {inputs.dtype}, autocast included")
        if inputs.shape[-1] != self.in_features:
            raise RuntimeError(f"The layer reads inputs {self.in_features} wide, got the shape {tuple(inputs.shape)}.")
        return _Product.apply(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"A layer with prepacked weights {what}. {AGAIN}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PrepackedLinear":
        _check_stays(fn, self.weight.dtype)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refuse("is not saved")

    def _load_from_state_dict(self, *_: Any) -> None:  # pyrefly: ignore[bad-override]
        self._refuse("takes no other weights")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._refuse("is not pickled, nor sent to another process")

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrepackedLinear":
        other = type(self).__new__(type(self))  # with the same tensors, of which nothing changes
        other.__dict__ = {
            name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(self).items()
        }
        return other


def _check_stays(fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Refuse what moves tensors of a type elsewhere, or makes another type of them."""
    moved = fn(torch.empty(0, dtype=dtype))
    if (moved.device.type, moved.dtype) != ("cpu", dtype):
        raise RuntimeError(
            f"A model with prepacked weights stays on the CPU in {dtype}, and cannot go to {moved.device} in "
            f"{moved.dtype}. {AGAIN}"
        )


def _check_layer(layer: nn.Linear, name: str) -> None:
    weight = layer.weight
    if not torch.backends.mkldnn.is_available():
        raise ValueError("`prepack` needs oneDNN, with which this PyTorch was not built (macOS has none).")
    if weight.device.type != "cpu":
        raise ValueError(
            f"`prepack` is for models on the CPU, got weights on {str(weight.device)!r}: "
            "open the model there, without `device_map`, or leave it out."
        )
    has_type = {
        torch.float32: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    if not has_type.get(weight.dtype):
        raise ValueError(
            f"`prepack` got weights in {weight.dtype}, which oneDNN cannot multiply on this processor: open "
            f"the model with `dtype` one of {', '.join(str(dtype) for dtype, has in has_type.items() if has)}."
        )
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise ValueError(f"`prepack` would lose the hooks on a layer {name!r}: remove them, and hook others.")
