"""Low-rank adapters (LoRA, DoRA, rsLoRA) by peft: which layers get one, how they are saved, opened and merged."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME

from core.files import write_folder
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioPreTrainedModel
from modeling_radio.checks_radio import check_choice
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.loading_radio import ODD_VALUES, check_adapter_weights
from modeling_radio.modeling_radio import ADAPTORS, BLOCKS
from training.finetuning.settings import FinetuneSettings


if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


BACKBONE, TEXT_TOWER = "radio_model", "text_tower"
PEFT_PREFIX = "base_model.model."
IN_BLOCKS = rf"{re.escape(BACKBONE)}\.model\.(?:decoder\.)?blocks\.\d+\."
"""How the names of what stands in a block of the backbone begin, those of RADIO1D's decoder among them."""


def valid_targets(model: RadioPreTrainedModel) -> list[str]:
    """Return the names of the linear layers that every block of the backbone has, such as `qkv` and `fc1`."""
    block = model.get_submodule(f"{BLOCKS}.0")
    return [name.rpartition(".")[2] for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def head_names(model: RadioPreTrainedModel) -> list[str]:
    """Return the names of what a task model has beside its backbone and a teacher's text tower.

    Where images are compared with texts it is the last layer of the adaptor that stands among them.
    """
    if isinstance(model, RadioForZeroShotImageClassification):
        name = f"{ADAPTORS}.{model.image_adaptor.name}.head_mlp"
        layers = model.get_submodule(name).named_modules(prefix=name)
        return [[name for name, module in layers if isinstance(module, nn.Linear)][-1]]
    return [name for name, _ in model.named_children() if name not in (BACKBONE, TEXT_TOWER)]


def norm_names(model: RadioPreTrainedModel) -> list[str]:
    """Return the names of the norms of all blocks."""
    modules = model.named_modules()
    return [name for name, module in modules if re.match(IN_BLOCKS, name) and isinstance(module, nn.LayerNorm)]


def build_lora_config(model: RadioPreTrainedModel, settings: FinetuneSettings) -> LoraConfig:
    """Return peft's configuration: adapters on named layers of the backbone's blocks, the heads trained in full.

    The layers are named by full path. "all-linear" would also wrap the patch projection and the heads.

    Raises:
        ValueError: If a target is no linear layer of a block; the message lists those that are.
    """
    from peft import LoraConfig

    targets = target_pattern(model, settings.lora_targets)
    alpha = settings.lora_alpha if settings.lora_alpha is not None else 2 * settings.lora_rank
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=cast(int, alpha),  # peft takes any number
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        modules_to_save=[*head_names(model), *(norm_names(model) if settings.train_norms else ())] or None,
        use_dora=settings.tune == "dora",
        use_rslora=settings.tune == "rslora",
    )


def target_pattern(model: RadioPreTrainedModel, targets: Sequence[str] | None) -> str:
    """Return a regular expression for the full paths of the named layers; None names all that are valid.

    Raises:
        ValueError: If a target is no linear layer of a block; the message lists those that are.
    """
    valid = valid_targets(model)
    for target in targets or ():
        check_choice("lora_targets", target, valid)
    names = "|".join(targets or valid)
    return rf"{IN_BLOCKS}(?:attn|mlp)\.(?:{names})"


def add_adapter(model: RadioPreTrainedModel, settings: FinetuneSettings) -> PeftModel:
    """Freeze the model and give it fresh adapters, which change nothing until they are trained.

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
    extras: Sequence[PreTrainedTokenizerBase] = (),
) -> None:
    """Write an adapter folder, replaced as a whole if it exists.

    Beside peft's two files it holds the task model's `config.json` with the code it names, from which the base is
    opened with the right head, and the processor.

    Args:
        model: A task model with one adapter.
        processor: Of the images that the adapter was trained on.
        path: Folder to write.
        base: Folder or Hub id of the base, for `base_model_name_or_path`; of a folder the absolute path.
        weights: All of the model's, whole, if it is sharded.
        extras: What else belongs into the folder.

    Raises:
        WriteError: If it cannot be written; an older folder is intact.
    """
    base_model = _base_of(model)

    def write(folder: Path) -> None:
        model.save_pretrained(str(folder), state_dict=weights)
        _config_to_open(base_model).save_pretrained(folder)
        for part in (processor, *extras):
            part.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's template, all blanks
        _make_portable(folder / ADAPTER_CONFIG_NAME, base)
        _name_magnitudes(folder / ADAPTER_SAFE_WEIGHTS_NAME)

    write_folder(path, write)


def _config_to_open(model: RadioPreTrainedModel) -> RadioConfig:
    """Return the configuration that opens the base with the model's head; the base's own files are not quantized."""
    fields = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    fields.pop("quantization_config", None)
    return RadioConfig.from_dict(fields)


def _make_portable(path: Path, base: str) -> None:
    """Name the base, and drop the Python module of its class, which no other process can import."""
    config = json.loads(path.read_text())
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    config |= {"base_model_name_or_path": base, "auto_mapping": None}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _name_magnitudes(path: Path) -> None:
    """Add ".weight" to the keys of DoRA's magnitudes: peft reads either, `load_adapter` of transformers this one."""
    weights = load_file(path)
    renamed = {_named_magnitude(key): tensor for key, tensor in weights.items()}
    if renamed.keys() != weights.keys():
        save_file(renamed, path, metadata={"format": "pt"})


def _named_magnitude(key: str) -> str:
    return re.sub(r"lora_magnitude_vector$", r"\g<0>.weight", key)


def open_adapter(model: RadioPreTrainedModel | PeftModel, folder: Path, name: str = "default") -> PeftModel:
    """Put a saved adapter on a base, or a further one beside those that it has.

    Args:
        model: The base with the task's head, or what this function returned before.
        folder: What `save_adapter` wrote.
        name: For `set_adapter`, and for `adapter_names` of a call that mixes adapters of a backbone within its batch.

    Returns:
        The model with the adapter active.

    Raises:
        ValueError: If the folder holds no adapter, or one for a model of another shape or with another head; the model
            is as it was.
    """
    from peft import PeftModel

    check_adapter(model, folder)
    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), name)
        model.set_adapter(name)
        return model
    with _without_renaming_warning():
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name)


@contextmanager
def _without_renaming_warning() -> Iterator[None]:
    """Hide that peft asks a model for `is_gradient_checkpointing`, which transformers is renaming."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def check_adapter(model: RadioPreTrainedModel | PeftModel, folder: Path) -> None:
    """Raise a `ValueError` unless an adapter folder fits a model."""
    missing = [
        name for name in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME) if not (folder / name).is_file()
    ]
    if missing:
        raise ValueError(f"{folder} is no adapter folder: it lacks {', '.join(missing)}.")
    base = _base_of(model)
    there, here = _saved_shapes(folder), _fitting_shapes(base, folder)
    mismatched = [(name, there[name], here[name]) for name in there.keys() & here.keys() if there[name] != here[name]]
    remark = _differing_fields(RadioConfig.from_pretrained(folder), base.config)
    check_adapter_weights(folder, here.keys() - there.keys(), there.keys() - here.keys(), mismatched, remark)


def _base_of(model: RadioPreTrainedModel | PeftModel) -> RadioPreTrainedModel:
    base = model if isinstance(model, RadioPreTrainedModel) else model.get_base_model()
    assert isinstance(base, RadioPreTrainedModel)
    return base


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the weights of an adapter folder by their names in the base."""
    with safe_open(folder / ADAPTER_SAFE_WEIGHTS_NAME, "pt") as weights:
        names = weights.keys()
        return {name.removeprefix(PEFT_PREFIX): tuple(weights.get_slice(name).get_shape()) for name in names}


def _fitting_shapes(model: RadioPreTrainedModel, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the weights that an adapter of the folder's kind has if it is made for a model and its heads.

    Raises:
        ValueError: If the folder's `adapter_config.json` is not one of LoRA.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict

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
    """Return in words which of our fields, and which number of classes, two configurations disagree on."""
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
        folder: What `save_adapter` wrote.
    """
    return open_adapter(base, folder).merge_and_unload()
