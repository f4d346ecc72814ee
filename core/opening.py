"""Opens models of ours with checks: all weights are there, of the right shape, floating-point numbers, and finite.

transformers fills in missing weights at random, converts any type to floats, and reads NaN without a word: a command
would answer, all the same, and its answers would be made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from modeling_radio import (
    TASK_MODELS,
    RadioBackbone,
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
    RadioPreTrainedModel,
)
from modeling_radio.checks_radio import check_choice, find_builtin
from modeling_radio.core.errors import first_few
from modeling_radio.core.machine import find_device
from modeling_radio.modeling_radio import SUMMARY_INDICES
from modeling_radio.nvidia.fit import check_fit
from modeling_radio.nvidia.stored_tensors import stored_tensors
from modeling_radio.tokenizer import open_tokenizer


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that a model can be opened in, by name."""
MODELS: dict[str, type[RadioPreTrainedModel]] = {
    **{model.__name__: model for model in (RadioModel, RadioBackbone)},
    **TASK_MODELS,
}
"""Classes that a folder's `config.json` can name as its own."""
OBJECTS = (RadioForObjectDetection, RadioForInstanceSegmentation)
"""Models whose objects count from a score on."""
DRAWN = (RadioForImageClassification, RadioForSemanticSegmentation, RadioForDepthEstimation, *OBJECTS)
"""Models with a head whose outputs can be drawn."""
TRUNK = "radio_model."
"""Beginning of the names of a backbone's weights."""
_INTEGERS = (SUMMARY_INDICES, ".num_batches_tracked")  # of the trunk
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
_MAX_NAMES = 4


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, with its processor and tokenizer.

    Attributes:
        checkpoint: Folder or Hub id.
        model: The model, of the class that the folder names.
        backbone: The same network as a `RadioModel`, with its adaptors; the model itself if it is one.
        processor: Makes the model's pixels.
        tokenizer: Tokenizer of a zero-shot model, else `None`.
    """

    checkpoint: str
    model: RadioPreTrainedModel
    backbone: RadioModel
    processor: RadioImageProcessor
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def dtype(self) -> str:
        """The type that it computes in, as `DTYPES` names it."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def zero_shot(self) -> RadioForZeroShotImageClassification | None:
        """The model, if it has a text tower."""
        return self.model if isinstance(self.model, RadioForZeroShotImageClassification) else None

    @property
    def has_head(self) -> bool:
        """True if it has a head whose outputs can be drawn."""
        return isinstance(self.model, DRAWN)

    @property
    def dense_adaptors(self) -> list[str]:
        """Adaptors with dense features, by the name of their teacher."""
        in_folder = self.backbone.radio_model.adaptors
        configs = self.backbone.config.adaptor_configs
        return [each.name for each in configs if each.feature_dim is not None and each.name in in_folder]

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the classes of its task."""
        names: Any = self.model.config.id2label
        return names


class Loaded(NamedTuple):
    """A model with finite weights, and how its class and the stored tensors differ.

    Attributes:
        model: The model, as `from_pretrained` returns it.
        unexpected: Stored tensors that the class does not have, sorted.
        missing: Weights that are not stored, sorted.
        misshapen: Those that are stored in another shape, sorted, by name; the value says it in words.
    """

    model: Any
    unexpected: list[str]
    missing: list[str]
    misshapen: dict[str, str]


def open_model(
    source: str,
    *,
    device: str | None = None,
    dtype: str = "float32",
    base: str | None = None,
    num_global: int | None = None,
) -> Opened:
    """Open a checkpoint of ours or in NVIDIA's layout, without running any code of it.

    Args:
        source: Folder or Hub id.
        device: As of `find_device`.
        dtype: One of `DTYPES`.
        base: Folder or Hub id of an adapter's base; `None` takes the one that the adapter names.
        num_global: Blocks that attend globally in ViTDet mode; `None` leaves the checkpoint's.

    Raises:
        ValueError: If it is no RADIO model, device or type are not available, or weights are missing, unknown, of
            another shape, not finite or no floating-point numbers.
        OSError: If there is no such folder or repository.
    """
    device = find_device(device)
    check_choice("dtype", dtype, DTYPES)
    values = read_radio_config(source)
    is_nvidias = "args" in values
    options: dict[str, Any] = {} if num_global is None else {"vitdet_num_global": num_global}
    if base is not None:
        options |= {"config": source, "adapter_kwargs": {"_adapter_model_path": source}}
    (name,) = (values.get("architectures") or ["RadioModel"])[:1]
    model_class = RadioModel if is_nvidias else MODELS.get(name, RadioModel)
    has_texts = model_class is RadioForZeroShotImageClassification
    if has_texts and values.get("text_tower") is None:
        raise ValueError(f"`checkpoint` must have the `text_tower` of its class, {name}, got {source!r} without.")
    model, unexpected, missing, misshapen = load(model_class, base or source, dtype=DTYPES[dtype], **options)
    unknown = [key for key in unexpected if key.startswith(TRUNK)]
    check_fit(unknown, missing, list(misshapen.values()))
    model = model.eval().to(device)
    return Opened(
        checkpoint=source,
        model=model,
        backbone=model if isinstance(model, RadioModel) else model.base_model.eval(),
        processor=_open_processor(source, model, is_nvidias=is_nvidias),
        tokenizer=open_tokenizer(source) if has_texts else None,
    )


def read_radio_config(checkpoint: str) -> dict[str, Any]:
    """Return the content of a checkpoint's `config.json`, ours or in NVIDIA's layout.

    Args:
        checkpoint: Folder or Hub id.

    Raises:
        ValueError: If it is no RADIO model.
        OSError: If there is no such folder or repository.
    """
    values, _ = RadioConfig.get_config_dict(checkpoint)
    if "args" not in values and values.get("model_type") != RadioConfig.model_type:
        raise ValueError(
            f"`checkpoint` must be a RADIO model, got {checkpoint!r} with the `model_type` "
            f"{values.get('model_type')!r:.60}."
        )
    return values


def require_rgb(opened: Opened) -> Opened:
    """Return a model that sees photographs.

    Raises:
        ValueError: If it takes images of other channels.
    """
    count = opened.model.config.num_channels
    if count != 3:
        raise ValueError(
            f"`checkpoint` must take RGB images, got {opened.checkpoint!r}, which takes images of {count} channels. "
            "`radio evaluate` measures it on files of these; `AutoModel` opens it."
        )
    return opened


def _open_processor(checkpoint: str, model: RadioPreTrainedModel, *, is_nvidias: bool) -> RadioImageProcessor:
    """Return the processor of a folder of ours, otherwise the one that fits the model."""
    if not is_nvidias:
        try:
            return RadioImageProcessor.from_pretrained(checkpoint)
        except OSError:  # it has none
            pass
    return RadioImageProcessor.from_model_config(model.config)


def load(model_class: type[RadioPreTrainedModel], source: str | Path, **options: Any) -> Loaded:
    """Return a model of one of our classes; which weights may be missing or of another shape, the caller knows.

    Args:
        model_class: The class.
        source: Folder or Hub id of a model or an adapter; of the base where `options` name the adapter.
        options: Options of `from_pretrained`.

    Raises:
        ValueError: If the checkpoint is damaged, or has weights that are not finite or no floating-point numbers.
        OSError: If there is no such folder or repository.
    """
    source = str(find_builtin(source))
    _check_types(source)
    with without_reports():
        opened: Any = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    model, info = opened
    adapter = (options.get("adapter_kwargs") or {}).get("_adapter_model_path", source)
    if model.source[0] != source:  # the base of an adapter
        _check_types(model.source[0])
    check_stored(adapter, (ADAPTER_SAFE_WEIGHTS_NAME,))
    check_finite(adapter, model)
    shapes = {key: f"{key} {tuple(given)} instead of {tuple(wanted)}" for key, given, wanted in info["mismatched_keys"]}
    unexpected, missing = sorted(info["unexpected_keys"]), sorted(info["missing_keys"])
    return Loaded(model, unexpected, missing, dict(sorted(shapes.items())))


def _check_types(source: str) -> None:
    values, _ = RadioConfig.get_config_dict(source)
    if values.get("quantization_config") is None:
        check_stored(source)


@contextmanager
def without_reports() -> Iterator[None]:
    """Silence transformers' table of missing and unknown weights, for callers that check these themselves."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_stored(source: str | Path, files: tuple[str, ...] | None = None) -> None:
    """Refuse weights of types that transformers would silently convert to floats.

    Args:
        source: Folder or Hub id.
        files: Names of the files of weights; None for those of a whole model.

    Raises:
        ValueError: If there are any, or a file is damaged.
    """
    strange = [
        f"{key} of {tensor.dtype}"
        for key, tensor in stored_tensors(source, files=files).items()
        if tensor.dtype not in _FLOATS and not key.endswith(_INTEGERS)
    ]
    if strange:
        raise ValueError(
            f"The weights in {str(source)!r} must be floating-point numbers of at least 16 bits, but "
            f"{len(strange)} are not: {first_few(strange, _MAX_NAMES)}."
        )


def check_finite(source: str | Path, model: torch.nn.Module) -> None:
    """Refuse a model with weights that are not finite, those of its head, text tower and adapters too.

    Args:
        source: Where the weights come from, for the message.
        model: The model.

    Raises:
        ValueError: If there are any; the message names the first.
    """
    state = model.state_dict()
    _refuse(source, [key for key, value in state.items() if isinstance(value, Tensor) and not is_finite(value)])


def check_weights(source: str | Path) -> None:
    """Refuse a folder with weights that are not finite or no floating-point numbers, without opening the model.

    Args:
        source: Folder or Hub id of a model or an adapter.

    Raises:
        ValueError: If there are any, or a file is damaged.
    """
    _check_types(str(source))
    check_stored(source, (ADAPTER_SAFE_WEIGHTS_NAME,))
    for files in (None, (ADAPTER_SAFE_WEIGHTS_NAME,)):
        stored = stored_tensors(source, files=files)
        _refuse(source, [key for key, tensor in stored.items() if not is_finite(tensor.read())])


def _refuse(source: str | Path, broken: list[str]) -> None:
    if broken:
        raise ValueError(
            f"The weights in {str(source)!r} must be finite, but {len(broken)} hold NaN or infinity: "
            f"{first_few(broken, _MAX_NAMES)}. They are damaged, or of a run that diverged."
        )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite; one without values, on the meta device, is."""
    return all(_is_finite(part) for part in plain_parts(tensor))


def _is_finite(part: Tensor) -> bool:
    if part.is_meta or not part.is_floating_point():
        return True
    part = part.float() if part.itemsize == 1 else part  # of 8 bits, for which torch has no `isfinite`
    return bool(part.isfinite().all())


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor consists of, such as torchao's 8-bit weights and their scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in plain_parts(vars(tensor)[name])]
