"""Low-rank adapters (LoRA, DoRA, rsLoRA) by peft: added to layers of the backbone, saved, opened and merged."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioPreTrainedModel
from modeling_radio.checks_radio import check_choice
from modeling_radio.core.files import write_folder
from modeling_radio.core.opening import check_finite, check_stored
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.loading_radio import ODD_VALUES
from modeling_radio.modeling_radio import ADAPTORS, BLOCKS
from modeling_radio.peft_radio import (
    FINGERPRINT,
    base_fingerprint,
    check_adapter_base,
    check_adapter_weights,
    read_adapter_config,
)
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.xattn_radio import CrossAttentionHead


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


BACKBONE, TEXT_TOWER = "radio_model", "text_tower"
PEFT_PREFIX = "base_model.model."
IN_BLOCKS = rf"{re.escape(BACKBONE)}\.model\.(?:decoder\.)?blocks\.\d+\."
"""Prefix of the names of modules in blocks of the backbone, RADIO1D's decoder included."""


class FolderPart(Protocol):
    """A part of a folder beside the model, such as a tokenizer."""

    def save_pretrained(self, folder: Path, /) -> Any: ...


def valid_targets(model: RadioPreTrainedModel) -> list[str]:
    """Return the names of the linear layers that every block of the backbone has, such as `qkv` and `fc1`."""
    block = model.get_submodule(f"{BLOCKS}.0")
    return [name.rpartition(".")[2] for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def head_names(model: RadioPreTrainedModel) -> list[str]:
    """Return the names of a task model's heads: its modules beside the backbone and a teacher's text tower.

    For zero-shot classification this is the last layer of the adaptor whose space the texts are in.
    """
    if isinstance(model, RadioForZeroShotImageClassification):
        name = f"{ADAPTORS}.{model.image_adaptor.name}.head_mlp"
        if isinstance(model.get_submodule(name), CrossAttentionHead):
            name += ".summary_proj"
        layers = model.get_submodule(name).named_modules(prefix=name)
        return [[name for name, module in layers if isinstance(module, nn.Linear)][-1]]
    return [name for name, _ in model.named_children() if name not in (BACKBONE, TEXT_TOWER)]


def build_lora_config(model: RadioPreTrainedModel, settings: FinetuneSettings) -> LoraConfig:
    """Return peft's configuration: adapters on linear layers of the backbone's blocks, the heads trained in full.

    The layers are named by full path. "all-linear" would also wrap the patch projection and the heads.

    Raises:
        ValueError: If a target is no linear layer of a block; the message lists those that are.
    """
    from peft import LoraConfig

    valid = valid_targets(model)
    for target in settings.lora_targets or ():
        check_choice("lora_targets", target, valid)
    targets = "|".join(settings.lora_targets or valid)
    alpha = settings.lora_alpha if settings.lora_alpha is not None else 2 * settings.lora_rank
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=cast(int, alpha),  # peft takes any number
        lora_dropout=settings.lora_dropout,
        target_modules=rf"{IN_BLOCKS}(?:attn|mlp)\.(?:{targets})",
        modules_to_save=head_names(model) or None,
        use_dora=settings.tune == "dora",
        use_rslora=settings.tune == "rslora",
    )


def add_adapter(model: RadioPreTrainedModel, settings: FinetuneSettings) -> PeftModel:
    """Freeze the model and give it new adapters, which change nothing until they are trained.

    Its heads become float32 and train in full.
    """
    from peft import get_peft_model

    for name in head_names(model):
        model.get_submodule(name).float()  # heads train in full: bfloat16 would swallow small steps
    config = build_lora_config(model, settings)
    with _without_renaming_warning():
        return get_peft_model(model, config)


def save_adapter(
    model: PeftModel,
    processor: RadioImageProcessor,
    path: Path,
    base: str,
    weights: dict[str, Tensor] | None = None,
    extras: Sequence[FolderPart] = (),
) -> None:
    """Write an adapter folder; an older one is replaced as a whole.

    Beside peft's two files it holds the processor and the task model's `config.json` with its code, from which the base
    is opened with the right head. The header of the weights holds some values of the base, so that another is refused.

    Args:
        model: A task model with one adapter.
        processor: Processor of the images that the adapter was trained on.
        path: Folder to write.
        base: Folder or Hub id of the base, for `base_model_name_or_path`; a folder is written as its absolute path.
        weights: All weights of a sharded model, gathered.
        extras: Tokenizers and records to write, too.

    Raises:
        WriteError: If it cannot be written; an older folder is intact.
    """
    base_model = _base_of(model)
    fields = {**base_model.config.to_dict(), "architectures": [type(base_model).__name__]}
    fields.pop("quantization_config", None)  # the base's own files are not quantized
    base = str(Path(base).resolve()) if Path(base).is_dir() else base

    def write(folder: Path) -> None:
        model.save_pretrained(str(folder), state_dict=weights)
        RadioConfig.from_dict(fields).save_pretrained(folder)
        for part in (processor, *extras):
            part.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's template, all blanks
        config_file, weights_file = folder / ADAPTER_CONFIG_NAME, folder / ADAPTER_SAFE_WEIGHTS_NAME
        # `auto_mapping` names the Python module of the class, which no other process can import.
        config = json.loads(config_file.read_text()) | {"base_model_name_or_path": base, "auto_mapping": None}
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        renamed = {_named_magnitude(key): tensor for key, tensor in load_file(weights_file).items()}
        fingerprint = base_fingerprint(model.named_parameters() if weights is None else weights.items())
        save_file(renamed, weights_file, metadata={"format": "pt", FINGERPRINT: json.dumps(fingerprint)})

    write_folder(path, write)


def _named_magnitude(key: str) -> str:
    """Add ".weight" to the key of a DoRA magnitude: peft reads either, `load_adapter` of transformers only this one."""
    return re.sub(r"lora_magnitude_vector$", r"\g<0>.weight", key)


def open_adapter(model: RadioPreTrainedModel | PeftModel, folder: Path, name: str = "default") -> PeftModel:
    """Put a saved adapter on a base, or a further one on a model with adapters.

    Args:
        model: The base with the task's head, or a model that this function returned.
        folder: Folder that `save_adapter` wrote.
        name: Name for `set_adapter`, and for `adapter_names` of a call that mixes adapters of a backbone in its batch.

    Returns:
        The model with the adapter active.

    Raises:
        ValueError: If the folder holds no adapter, or one for a model of another shape, with another head or that was
            trained on another base; the model is unchanged.
    """
    from peft import PeftModel

    _check_adapter(model, folder)
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), name)
        model.set_adapter(name)
        return model
    with _without_renaming_warning():
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name)


@contextmanager
def _without_renaming_warning() -> Iterator[None]:
    """Hide that peft reads a model's `is_gradient_checkpointing`, which transformers is renaming."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def _check_adapter(model: RadioPreTrainedModel | PeftModel, folder: Path) -> None:
    """Refuse an adapter folder that does not fit a model."""
    files = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no adapter folder: it lacks {', '.join(missing)}.")
    check_stored(folder, (ADAPTER_SAFE_WEIGHTS_NAME,))
    base = _base_of(model)
    with safe_open(folder / ADAPTER_SAFE_WEIGHTS_NAME, "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    there = {name.removeprefix(PEFT_PREFIX): shape for name, shape in shapes.items()}
    here = _fitting_shapes(base, folder)
    mismatched = [(name, there[name], here[name]) for name in there.keys() & here.keys() if there[name] != here[name]]
    remark = _differing_fields(RadioConfig.from_pretrained(folder), base.config)
    check_adapter_weights(folder, here.keys() - there.keys(), there.keys() - here.keys(), mismatched, remark)
    check_adapter_base(folder, base)


def _base_of(model: RadioPreTrainedModel | PeftModel) -> RadioPreTrainedModel:
    base = model if isinstance(model, RadioPreTrainedModel) else model.get_base_model()
    assert isinstance(base, RadioPreTrainedModel)
    return base


def _fitting_shapes(model: RadioPreTrainedModel, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of an adapter for a model, of the kind of the folder's adapter.

    Raises:
        ValueError: If the folder's `adapter_config.json` is not one of LoRA.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict

    read_adapter_config(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise TypeError(f"`peft_type` is {config.peft_type!r:.60}")
        norms = [name for name in config.modules_to_save or () if re.match(IN_BLOCKS, name)]
        config.modules_to_save = [*head_names(model), *norms] or None
        config.base_model_name_or_path = None  # else peft warns that it changes
        with torch.device("meta"), _without_renaming_warning():
            adapted = get_peft_model(type(model)(copy.deepcopy(model.config)), config)
    except ODD_VALUES as error:
        raise ValueError(f"{folder / ADAPTER_CONFIG_NAME} must describe an adapter of LoRA: {error}.") from error
    weights = get_peft_model_state_dict(adapted)
    return {_named_magnitude(name).removeprefix(PEFT_PREFIX): tuple(tensor.shape) for name, tensor in weights.items()}


def _differing_fields(there: RadioConfig, here: RadioConfig) -> str:
    """Return a sentence about our fields, and the number of classes, in which two configurations differ."""
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    ours = [field.name for field in dataclasses.fields(RadioConfig) if field.name not in general]
    names = ["num_labels", *(name for name in ours if not name.startswith("_"))]
    values = [(name, getattr(there, name), getattr(here, name)) for name in names]
    fields = [f"`{name}` ({before!r}, here {now!r})" for name, before, now in values if before != now]
    return f"Its config.json differs in {', '.join(fields)}." if fields else ""


def merge_adapter(base: RadioPreTrainedModel, folder: Path) -> RadioPreTrainedModel:
    """Return a plain model: a base with a saved adapter merged into its weights.

    Args:
        base: In float32, since the sum is rounded to the base's precision; it becomes the result.
        folder: Folder that `save_adapter` wrote.

    Raises:
        ValueError: As `open_adapter`, or if the sum is not finite.
    """
    merged = open_adapter(base, folder).merge_and_unload()
    check_finite(folder, merged)
    return merged
