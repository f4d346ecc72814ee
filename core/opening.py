"""Opens models of ours with checks: all weights are there, of the right shape, floating-point numbers, and finite.

transformers fills in missing weights at random, converts any type to floats, and reads NaN without a word: a command
would answer, all the same, and its answers would be made up.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME, IMAGE_PROCESSOR_NAME
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
from modeling_radio.checks_radio import check_choice, find_builtin, read_json
from modeling_radio.configuration_radio import check_file
from modeling_radio.core.errors import first_few
from modeling_radio.core.hub import find_folder
from modeling_radio.core.ids import model_folder
from modeling_radio.core.machine import find_device
from modeling_radio.core.trust import check_parts
from modeling_radio.heads_radio import RadioTaskModel
from modeling_radio.modeling_radio import SUMMARY_INDICES
from modeling_radio.nvidia.fit import check_fit
from modeling_radio.nvidia.stored_tensors import stored_tensors
from modeling_radio.tasks_radio import HeadTask, task_of
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
OF_TEXTS = ("text_tower", "logit_scale", "logit_bias")
"""Parts of a zero-shot model beside the backbone."""
TRUNK = "radio_model."
"""Beginning of the names of a backbone's weights."""
_INTEGERS = (SUMMARY_INDICES, ".num_batches_tracked")  # of the trunk
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
_MAX_NAMES = 4


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, with its processor and tokenizer.

    Attributes:
        checkpoint: Folder or Hub id, as the user named it.
        folder: Its folder on this machine; of an adapter that of the adapter.
        model: The model, of the class that the folder names.
        backbone: The same network as a `RadioModel`, with its adaptors; the model itself if it is one.
        processor: Makes the model's pixels.
        tokenizer: Tokenizer of a zero-shot model, else `None`.
        base: Folder of an adapter's base; `None` where there is no adapter.
        others: Names of the parts of the folder that the model does not have, sorted, such as the head of a task.
    """

    checkpoint: str
    folder: Path
    model: RadioPreTrainedModel
    backbone: RadioModel
    processor: RadioImageProcessor
    tokenizer: PreTrainedTokenizerBase | None
    base: Path | None = None
    others: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> str:
        """Hash of its weights and its architecture, which results keep; see `network_fingerprint`."""
        return network_fingerprint(self.model)

    @property
    def task(self) -> HeadTask | None:
        """Task of the model; `None` of a backbone."""
        return task_of([type(self.model).__name__])

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
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | None = "float32",
    base: str | None = None,
    num_global: int | None = None,
    adaptors: Sequence[str] = (),
    as_backbone: bool = False,
) -> Opened:
    """Open a checkpoint of ours or in NVIDIA's layout, without running any code of it.

    Args:
        source: Folder of a model or an adapter, or of a run with one in `final/`; `builtin:NAME`; or Hub id.
        device: See `find_device`.
        dtype: One of `DTYPES`; `None` leaves the type of the weights.
        base: Folder or Hub id of an adapter's base; `None` takes the one on the Hub that the adapter names.
        num_global: Blocks that attend globally in ViTDet mode; `None` leaves the checkpoint's.
        adaptors: Adaptors that NVIDIA's folder shall have, whose weights lie beside it.
        as_backbone: Open the backbone alone, without the head or the text tower that the folder has.

    Raises:
        ValueError: If it is no RADIO model, names code of others, device or type are not available, an adapter's base
            must be named or is another one, or weights are missing, unknown, of another shape, not finite or no
            floating-point numbers.
    """
    device = find_device(None if device is None else str(device))
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    folder = find_model(source, adaptors)
    values = read_radio_config(folder)
    if as_backbone and (folder / ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(
            f"`checkpoint` must be a whole model, got the adapter {str(source)!r}. Give the `merged/` that "
            "`radio finetune --merge` or `radio merge` writes."
        )
    named_base = check_parts(str(folder), base)
    options: dict[str, Any] = {} if num_global is None else {"vitdet_num_global": num_global}
    options |= {} if dtype is None else {"dtype": DTYPES[dtype]}
    base_folder = None if named_base is None else find_folder(named_base, "base")
    if base_folder is not None:
        options |= {"config": str(folder), "adapter_kwargs": {"_adapter_model_path": str(folder)}}
    is_nvidias = "args" in values
    (name,) = (values.get("architectures") or ["RadioModel"])[:1]
    model_class = RadioModel if is_nvidias or as_backbone else MODELS.get(name, RadioModel)
    has_texts = model_class is RadioForZeroShotImageClassification
    if has_texts and values.get("text_tower") is None:
        raise ValueError(f"`checkpoint` must have the `text_tower` of its class, {name}, got {str(source)!r} without.")
    model, unexpected, missing, misshapen = load(model_class, base_folder or folder, **options)
    unknown = [key for key in unexpected if key.startswith(TRUNK)]
    check_fit(unknown, missing, list(misshapen.values()))
    model = model.eval()
    model = model if getattr(model, "is_quantized", False) else model.to(device)
    return Opened(
        checkpoint=str(source),
        folder=folder,
        model=model,
        backbone=model if isinstance(model, RadioModel) else model.base_model.eval(),
        processor=_open_processor(folder, model, is_nvidias=is_nvidias),
        tokenizer=open_tokenizer(folder) if has_texts else None,
        base=base_folder,
        others=tuple(sorted({key.partition(".")[0] for key in unexpected} - {TRUNK.rstrip(".")})),
    )


def find_model(source: str | Path, adaptors: Sequence[str] = ()) -> Path:
    """Return the folder of a model or an adapter; see `open_model`.

    Raises:
        ValueError: If there is none.
    """
    return find_folder(model_folder(Path(source)), "checkpoint", adaptors=adaptors)


def read_radio_config(checkpoint: str | Path) -> dict[str, Any]:
    """Return the content of a folder's `config.json`, ours or in NVIDIA's layout.

    Raises:
        ValueError: If it has none, it is no RADIO model, or a field of transformers' own is of another kind.
    """
    values = read_config(find_model(checkpoint))
    if "args" not in values and values.get("model_type") != RadioConfig.model_type:
        raise ValueError(
            f"`checkpoint` must be a RADIO model, got {str(checkpoint)!r} with the `model_type` "
            f"{values.get('model_type')!r:.60}."
        )
    check_file(values)
    return values


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `config.json`; with `args` in it, the layout is that of NVIDIA's repositories.

    Raises:
        ValueError: If there is no such file, or it is no JSON object.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"`checkpoint` must be a folder with a config.json, got {str(folder)!r}.")
    return read_json(path)


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


def open_for_export(
    source: str | Path, *, as_backbone: bool = True, with_texts: bool = False, adaptors: Sequence[str] = ()
) -> Opened:
    """Open a checkpoint that another format is made of, in the type of its weights; warn of parts that are left out.

    Args:
        source: See `open_model`, like the other arguments.
        as_backbone: Whether the head or the text tower is left out.
        with_texts: Whether the caller exports the text tower by itself: then there is no warning about it.
        adaptors: Adaptors that are exported.

    Raises:
        ValueError: If it is quantized, or as `open_model`.
    """
    folder = find_model(source)
    config = read_config(folder)
    check_not_quantized(source, config)
    opened = open_model(folder, device="cpu", dtype=None, adaptors=adaptors, as_backbone=as_backbone)
    others = {*opened.others} | ({OF_TEXTS[0]} if as_backbone and config.get("text_tower") is not None else set())
    others -= {*OF_TEXTS} if with_texts else set()
    if others:
        shown = first_few(sorted(others), _MAX_NAMES)
        warnings.warn(f"{str(source)!r} holds more than RADIO, which is left out: {shown}.", stacklevel=2)
    return opened


def check_not_quantized(checkpoint: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose `config.json`, given parsed, tells that its weights are quantized.

    Raises:
        ValueError: If they are.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"{str(checkpoint)!r} is quantized, which no other format has. Export it before quantizing it."
        )


def require_head(opened: Opened) -> RadioTaskModel:
    """Return a model with the head of a task.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(opened.model, RadioTaskModel):
        known = [name for name, model in MODELS.items() if issubclass(model, RadioTaskModel)]
        raise ValueError(
            f"`checkpoint` must hold a model of a task for `head`, got {opened.checkpoint!r} of the class "
            f"{type(opened.model).__name__!r}. Known are {', '.join(known)}."
        )
    return opened.model


def _open_processor(folder: Path, model: RadioPreTrainedModel, *, is_nvidias: bool) -> RadioImageProcessor:
    """Return the processor of a folder of ours, otherwise the one that fits the model."""
    if not is_nvidias and (folder / IMAGE_PROCESSOR_NAME).is_file():
        return RadioImageProcessor.from_pretrained(folder)
    return RadioImageProcessor.from_model_config(model.config)


def tensor_fingerprint(*tensors: Tensor) -> str:
    """Return a hash of the shapes, types and bytes of tensors."""
    content = hashlib.blake2b(digest_size=8)
    for tensor in itertools.chain.from_iterable(map(plain_parts, tensors)):
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def network_fingerprint(network: torch.nn.Module) -> str:
    """Return a hash of the weights, and one of the architecture: timm publishes the same weights under two activations.

    Neither depends on the file that the network was read from.
    """
    modules = dict(network.named_modules())
    own = [vars(module) for module in modules.values()]
    architecture = {
        "classes": {name: type(module).__qualname__ for name, module in modules.items()},
        "transformers": [
            each.config.to_json_string() for each in modules.values() if isinstance(each, PreTrainedModel)
        ],
        "timm": [each["pretrained_cfg"]["architecture"] for each in own if "pretrained_cfg" in each],
    }
    text = json.dumps(architecture, sort_keys=True)
    return f"{tensor_fingerprint(*network.state_dict().values())} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


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
