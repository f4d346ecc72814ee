"""Weights of linear layers in the order in which oneDNN reads them: faster inference on a CPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


AGAIN = "Open the model again with `from_pretrained` and leave out `prepack_weights()`."


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
            RuntimeError: If gradients are asked for, or the input has another type than the weight.
        """
        if inputs.requires_grad and torch.is_grad_enabled():
            self._refuse("gives no gradients")
        if inputs.dtype != self.weight.dtype:
            self._refuse(f"of {self.weight.dtype} cannot read {inputs.dtype}, autocast included")
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def check_stays(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Refuse what moves tensors elsewhere or makes another type of them.

        Raises:
            RuntimeError: If `fn` does.
        """
        like = torch.empty(0, dtype=self.weight.dtype)
        moved = fn(like)
        if (moved.device, moved.dtype) != (like.device, like.dtype):
            self._refuse(f"stays on the CPU in {like.dtype}, and cannot go to {moved.device} in {moved.dtype}")

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"A layer with prepacked weights {what}. {AGAIN}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PrepackedLinear":
        self.check_stays(fn)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._refuse("is not saved")

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrepackedLinear":
        return copy.copy(self)  # nothing of it changes


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
            ValueError: If weights are not on the CPU, in a type that oneDNN lacks here, or belong to a PEFT adapter, or
                PyTorch was built without oneDNN. The model is as it was.
        """
        model: Any = self
        layers = [
            (module, name, child)
            for module in model.modules()
            for name, child in module.named_children()
            if type(child) is nn.Linear and type(child.weight) is nn.Parameter and type(child.weight.data) is Tensor
        ]
        if any(hasattr(module, "base_layer") for module in model.modules()):
            raise ValueError("Adapters of peft are not prepacked: call `merge_and_unload()` of the model first.")
        for _, _, layer in layers:
            _check_weight(layer.weight)
        for module, name, layer in layers:
            setattr(module, name, PrepackedLinear(layer))
        return model.eval().requires_grad_(requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for layer in self._prepacked_layers():  # before anything else moves
            layer.check_stays(fn)
        return super()._apply(fn, recurse)  # pyrefly: ignore[missing-attribute]

    def _prepacked_layers(self) -> list[PrepackedLinear]:
        model: Any = self
        return [module for module in model.modules() if isinstance(module, PrepackedLinear)]

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does, but nothing of a model whose weights are prepacked.

        Raises:
            RuntimeError: If they are; nothing is written.
        """
        if self._prepacked_layers():
            raise RuntimeError(f"`save_pretrained` has no weights to save: they are prepacked. {AGAIN}")
        return super().save_pretrained(save_directory, *args, **kwargs)  # pyrefly: ignore[missing-attribute]


def _check_weight(weight: Tensor) -> None:
    if not torch.backends.mkldnn.is_available():
        raise ValueError("`prepack_weights` needs oneDNN, with which this PyTorch was not built (macOS has none).")
    if weight.device.type != "cpu":
        raise ValueError(
            f"`prepack_weights` is for models on the CPU, got weights on {str(weight.device)!r}: "
            'call `model.to("cpu")` first, or leave it out.'
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
