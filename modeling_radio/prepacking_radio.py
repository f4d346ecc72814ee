"""Weights of linear layers in the order in which oneDNN reads them: faster inference on a CPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


AGAIN = "Open the model again with `from_pretrained` and leave out `prepack_weights()`."


class _Product(torch.autograd.Function):
    """What a prepacked layer computes; PyTorch then says itself that it has no derivative, forward or backward."""

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


class PrepackedInference:
    """What lets a model prepack its weights: methods of `RadioModel` and the task models."""

    def prepack_weights(self) -> Any:
        """Put the weights of all linear layers in the order in which oneDNN reads them, for inference on a CPU.

        Features stay as they are but for rounding. The model is in evaluation afterwards, gives no gradients, and is
        neither saved nor moved: it was opened for this. What that is worth says docs/benchmarks.md. Quantized layers
        stay as they are; a second call changes nothing.

        Returns:
            The model itself.

        Raises:
            ValueError: If weights are not on the CPU, in a type that oneDNN lacks here, or of a PEFT adapter, if a
                layer has hooks, or PyTorch was built without oneDNN. The model is as it was.
        """
        model: Any = self
        if any(hasattr(module, "base_layer") for module in model.modules()):
            raise ValueError("Adapters of peft are not prepacked: call `merge_and_unload()` of the model first.")
        places = [
            (module, name)
            for module in model.modules()
            for name, child in module.named_children()
            if type(child) is nn.Linear and type(child.weight) is nn.Parameter and type(child.weight.data) is Tensor
        ]
        for module, name in places:
            _check_layer(getattr(module, name), name)
        for module, name in places:
            setattr(module, name, PrepackedLinear(getattr(module, name)))
        self._block_costs = None  # of `choose_window_size`: other times
        return model.eval().requires_grad_(requires_grad=False)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load as PyTorch does, but nothing into a model whose weights are prepacked.

        Raises:
            RuntimeError: If they are; nothing is loaded.
        """
        if self._is_prepacked():
            raise RuntimeError(f"`load_state_dict` has no weights to load into: they are prepacked. {AGAIN}")
        return super().load_state_dict(*args, **kwargs)  # pyrefly: ignore[missing-attribute]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, but nothing of a model whose weights are prepacked.

        Raises:
            RuntimeError: If they are; nothing is written.
        """
        if self._is_prepacked():
            raise RuntimeError(f"`save_pretrained` has no weights to save: they are prepacked. {AGAIN}")
        return super().save_pretrained(save_directory, *args, **kwargs)  # pyrefly: ignore[missing-attribute]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        model: Any = self
        if self._is_prepacked():  # before anything of it moves
            _check_stays(fn, model.dtype)
        return super()._apply(fn, recurse)  # pyrefly: ignore[missing-attribute]

    def _is_prepacked(self) -> bool:
        model: Any = self
        return any(isinstance(module, PrepackedLinear) for module in model.modules())


def _check_layer(layer: nn.Linear, name: str) -> None:
    weight = layer.weight
    if not torch.backends.mkldnn.is_available():
        raise ValueError("`prepack_weights` needs oneDNN, with which this PyTorch was not built (macOS has none).")
    if weight.device.type != "cpu":
        raise ValueError(
            f"`prepack_weights` is for models on the CPU, got weights on {str(weight.device)!r}: "
            "open the model there, without `device_map`, or leave it out."
        )
    has_type = {
        torch.float32: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    if not has_type.get(weight.dtype):
        raise ValueError(
            f"`prepack_weights` got weights in {weight.dtype}, of which oneDNN has no products on this processor: open "
            f"the model with `dtype` one of {', '.join(str(dtype) for dtype, has in has_type.items() if has)}."
        )
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        raise ValueError(f"`prepack_weights` would lose the hooks on a layer {name!r}: remove them, and hook others.")
