"""Other ways through the same network that only a GPU has, of which those are timed that run on this one."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_radio import RadioModel


KERNELS = {
    "SDPA by FlashAttention": SDPBackend.FLASH_ATTENTION,
    "SDPA by cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA in little memory": SDPBackend.EFFICIENT_ATTENTION,
}
UNSUPPORTED = (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError)
"""What PyTorch and torchao raise where a card, a type or a head size lacks what is asked for."""


def build_gpu_calls(model: RadioModel, image: Tensor) -> dict[str, Callable[[], Any]]:
    """Return by name what runs here; what does not is named on the error stream with its reason."""
    ways = {name: partial(run_by_kernel, model, image, kernel) for name, kernel in KERNELS.items()}
    ways["compiled, CUDA graphs"] = partial(_prepared(_graphs, model), image)
    ways["FP8"] = partial(_prepared(_fp8, model), image)
    ways["FlashAttention 3"] = partial(_prepared(_flash_attention_3, model), image)
    return {name: call for name, call in ways.items() if _runs(name, call)}


def run_by_kernel(model: RadioModel, image: Tensor, kernel: SDPBackend) -> Any:
    """Return what the model answers where SDPA may take one kernel only."""
    with sdpa_kernel(kernel):
        return model(image, window_size="global")


def _runs(name: str, call: Callable[[], Any]) -> bool:
    try:
        call()
    except UNSUPPORTED as error:
        print(f"{name} is left out: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return False
    return True


def _prepared(prepare: Callable[[RadioModel], Any], model: RadioModel) -> Callable[[Tensor], Any]:
    """Return a function that prepares a copy of the model when it is first called, and then calls that."""
    prepared: list[Any] = []

    def call(image: Tensor) -> Any:
        if not prepared:
            prepared.append(prepare(copy.deepcopy(model)))
        return prepared[0](image, window_size="global")

    return call


def _graphs(model: RadioModel) -> Any:
    return torch.compile(model, mode="reduce-overhead")


def _fp8(model: RadioModel) -> RadioModel:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

    quantize_(model, Float8DynamicActivationFloat8WeightConfig())
    return model


def _flash_attention_3(model: RadioModel) -> RadioModel:
    model.set_attn_implementation("flash_attention_3")
    return model
