"""The model of a fine-tuning run: opened from a checkpoint, given its head, adapters and precision, and saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.utils import find_adapter_config_file, is_bitsandbytes_available

from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioPreTrainedModel
from modeling_radio.checks_radio import Resolution, did_you_mean
from modeling_radio.core.files import write_folder
from modeling_radio.core.hub import find_folder
from modeling_radio.core.opening import load
from modeling_radio.core.trust import check_named_code
from modeling_radio.data.arrays import measure_channels
from modeling_radio.data.settings import RGB
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.inputs_radio import choose_without_budget
from modeling_radio.tasks_radio import TASKS
from modeling_radio.training.student.parameters import freeze_projection_of_clips
from modeling_radio.training.views.windows import more_windowed
from modeling_radio.tuning.adapters import BACKBONE, IN_BLOCKS, FolderPart, add_adapter, head_names
from modeling_radio.tuning.channels import FIRST_LAYER, widened
from modeling_radio.tuning.settings import FinetuneSettings
from modeling_radio.tuning.tasks.base import FinetuningTask


TRUNK = f"{BACKBONE}.model"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trained and of all parameters, without the copies of untrained heads that peft keeps."""
    kept = [weight for name, weight in model.named_parameters() if ".original_module." not in name]
    trained = sum(_num_weights(weight) for weight in kept if weight.requires_grad)
    return trained, sum(map(_num_weights, kept))


def _num_weights(parameter: nn.Parameter) -> int:
    """Return the size of a parameter before quantization: bitsandbytes packs weights of four bits in pairs."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def open_config(checkpoint: str) -> RadioConfig:
    """Return the configuration of a checkpoint folder or Hub id.

    Raises:
        ValueError: If there is no configuration, an adapter lies beside it, which transformers would put on the model,
            or the folder names code of others.
    """
    folder = find_folder(checkpoint, "checkpoint")
    try:
        if find_adapter_config_file(str(folder)) is not None:
            raise ValueError(
                f"`checkpoint` must be a whole model, got the adapter {checkpoint!r}. Give the `merged/` that "
                "`--merge` writes, or its base."
            )
        check_named_code(folder)
        # A tuned model returns named outputs.
        return RadioConfig.from_pretrained(checkpoint, return_dict=True, nvidia_outputs=False)
    except OSError as error:
        raise ValueError(f"`checkpoint` must be a folder or Hub id with a config.json, got {checkpoint!r}.") from error


def check_network(config: RadioConfig, settings: FinetuneSettings) -> None:
    """Refuse settings that need our ViT's blocks for an E-RADIO or a network of a library.

    Adapters would not change its convolutions, and the running statistics of its batch norms would not be saved.

    Raises:
        ValueError: If a setting is refused; the message names it.
    """
    refused = {
        "tune": settings.uses_adapter,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "window_size": settings.window_size == "global",
    }
    for name, is_refused in refused.items():
        if is_refused and config.is_foreign:
            raise ValueError(
                f"`{name}` cannot be {getattr(settings, name)!r} for this network, which has no blocks of our ViT. "
                "Use `--tune head` or `--tune full`."
            )


def configure(config: RadioConfig, task: FinetuningTask) -> RadioConfig:
    """Return the configuration of a task's model, given that of its checkpoint.

    Raises:
        ValueError: If the settings change a field that does not exist or that the labels or other settings decide,
            images have fewer patches than a detector has queries, a window would change nothing, or the checkpoint has
            no text tower for a task that needs one.
    """
    settings = task.run_settings
    height, width = task.size
    grid = Resolution(height // config.patch_size, width // config.patch_size)
    decided = {**task.config_fields(), **_window_fields(config, task, grid), **_channel_fields(config, task)}
    known = [field.name for field in dataclasses.fields(RadioConfig)]
    of_others = _fields_of_others(task.model_class)
    for name, value in settings.config.items():
        if name not in known:
            raise ValueError(f"`config` has no field {name!r}.{did_you_mean(name, known)}")
        if name in of_others:
            raise ValueError(f"`config` cannot set {name!r}: the head for {settings.task} does not read it.")
        if decided.get(name, value) != value:
            raise ValueError(f"`config` cannot set {name!r}: the labels and the settings decide it ({decided[name]}).")
    configured = RadioConfig.from_dict({**config.to_dict(), **decided, **settings.config})
    window = settings.window_size
    if isinstance(window, int) and configured.eradio is None and not configured.has_windowed_blocks:
        remedy = more_windowed(configured, "model", "config")
        raise ValueError(
            f"`window_size` must be left out where all blocks attend globally: {window} has no effect. {remedy}"
        )
    task.check_config(configured, grid)
    return configured


def _channels_of(config: RadioConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("num_channels", "norm_mean", "norm_std")}


def _channel_fields(config: RadioConfig, task: FinetuningTask) -> dict[str, Any]:
    """Return number and normalization of the channels; a checkpoint that was tuned on other channels keeps its own."""
    count = task.settings.num_channels
    if count is None or config.num_channels != len(RGB):
        return {}
    rows = task.images.train if len(task.images.train) else task.images.validation
    mean, deviation = measure_channels(rows["image"][:], count)
    return {"num_channels": count, "norm_mean": mean, "norm_std": deviation}


def _fields_of_others(model_class: type) -> set[str]:
    """Return the fields of the configuration that only heads of other tasks read."""
    names = {each.__name__ for each in model_class.__mro__}
    own = {name for task in TASKS.values() if task.class_name in names for name in task.fields}
    is_known = any(task.class_name in names for task in TASKS.values())
    return {name for task in TASKS.values() for name in task.fields} - own if is_known else set()


def _window_fields(config: RadioConfig, task: FinetuningTask, grid: Resolution) -> dict[str, Any]:
    """Return the field that holds the window; "auto" is resolved for the image size where only numbers are allowed."""
    window = task.run_settings.window_size
    if window is None:
        return {}
    if task.window_field is not None:
        return {task.window_field: window}
    if window == "auto" and config.eradio is None:
        window = choose_without_budget(config, *grid)
    elif window == "auto":
        from modeling_radio.eradio_radio import optimal_window

        window = optimal_window(*task.size)
    return {"vitdet_window_size": None if window == "global" else window}


def build_model(config: RadioConfig, task: FinetuningTask, report: Callable[[str], None]) -> nn.Module:
    """Open the checkpoint with a new head, unless it has one that fits, and choose the trained weights.

    Args:
        config: Configuration of the task's model.
        task: The task.
        report: Called with a line about head weights that start new.
    """
    settings = task.run_settings
    dtype = torch.bfloat16 if settings.uses_adapter and computes_in_bfloat16(settings) else torch.float32
    options = {"quantization_config": _quantization(settings)} if settings.quantize else {}
    model = build_task_model(task, settings.checkpoint, report, config=config, dtype=dtype, **options)
    task.prepare(model)
    is_wider = open_config(settings.checkpoint).num_channels != config.num_channels
    if settings.uses_adapter:
        if settings.quantize is not None:
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # norms in float32
        return add_adapter(model, settings)
    if settings.tune == "head":
        model.requires_grad_(False)
    elif isinstance(model, RadioForZeroShotImageClassification):
        model.requires_grad_(False)  # the text tower and unused adaptors
        model.get_submodule(TRUNK).requires_grad_(True)
    for name in head_names(model):
        model.get_submodule(name).requires_grad_(True)
    if is_wider:
        model.get_submodule(FIRST_LAYER).requires_grad_(True)
    freeze_projection_of_clips(model)
    return model


def build_task_model(
    task: FinetuningTask, checkpoint: str, report: Callable[[str], None] | None = None, **options: Any
) -> RadioPreTrainedModel:
    """Return the model of a task on the backbone of a checkpoint, with new weights where it has no head that fits.

    Args:
        task: The task.
        checkpoint: Folder or Hub id.
        report: Called with a line about head weights that start new because they have another shape.
        options: Options of `from_pretrained`.

    Raises:
        ValueError: As `load`, or if weights of the backbone are missing or have another shape.
    """
    config: RadioConfig | None = options.get("config")
    stored = {} if config is None or task.settings.num_channels is None else _channels_of(open_config(checkpoint))
    if config is not None and stored:
        options["config"] = RadioConfig.from_dict({**config.to_dict(), **stored})
    model, _, missing, misshapen = load(task.model_class, checkpoint, **options)
    mismatched = list(misshapen)
    missing = sorted(name for name in {*missing, *mismatched} if name.startswith(f"{BACKBONE}."))
    if missing:
        raise ValueError(
            f"`checkpoint` {checkpoint!r} lacks {len(missing)} weights of the backbone in the shape that the "
            f"configuration asks for, such as {missing[0]}."
        )
    if mismatched and report is not None:
        report(
            f"{len(mismatched)} weights of the head have another shape in the checkpoint and start new, such as "
            f"{mismatched[-1]}."
        )
    return widened(model, config, task.run_settings) if config is not None and stored else model


def _quantization(settings: FinetuneSettings) -> BitsAndBytesConfig:
    """Return the configuration that stores the linear layers of the blocks, and nothing else, in 4 or 8 bits.

    Raises:
        ValueError: If bitsandbytes is not installed.
    """
    if not is_bitsandbytes_available():
        raise ValueError(
            f"`quantize` {settings.quantize} needs the package bitsandbytes, which is not installed: "
            "`pip install bitsandbytes`, or leave `quantize` out."
        )
    kept = [rf"(?!{IN_BLOCKS}).+"]  # transformers takes regular expressions for names from the root
    if settings.quantize == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    # NF4 with double quantization as in QLoRA, https://arxiv.org/abs/2305.14314
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,
    )


def computes_in_bfloat16(settings: FinetuneSettings) -> bool:
    """True if forward and backward run in bfloat16."""
    if settings.dtype == "auto":
        # Emulated, as on a T4 or V100, it is slow.
        has_gpu = torch.cuda.is_available() and settings.device != "cpu"
        return has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return settings.dtype == "bfloat16"


def save_plain(
    model: RadioPreTrainedModel,
    processor: RadioImageProcessor,
    path: Path,
    weights: dict[str, Tensor] | None = None,
    extras: Sequence[FolderPart] = (),
) -> None:
    """Write model and processor as a folder that the Auto classes open.

    Args:
        model: The model.
        processor: Its processor.
        path: Folder to write.
        weights: All weights of a sharded model, gathered.
        extras: Tokenizers and records to write, too.

    Raises:
        WriteError: If it cannot be written; an older folder is intact.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=weights)
        for part in (processor, *extras):
            part.save_pretrained(folder)

    write_folder(path, write)
