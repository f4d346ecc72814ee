"""Opens what the app shows: a backbone, a tuned model, an adapter or a zero-shot model, from a folder or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import modeling_radio
from modeling_radio import RadioForZeroShotImageClassification, RadioImageProcessor, RadioModel, RadioPreTrainedModel
from modeling_radio.auto_map_radio import TASK_OF_CLASS
from modeling_radio.messages_radio import check_choice
from modeling_radio.nvidia_folder_radio import check_fit


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a model can be opened in, by name."""
MODELS = {
    name: model
    for name in modeling_radio.__all__
    if isinstance(model := getattr(modeling_radio, name), type) and issubclass(model, RadioPreTrainedModel)
}
"""Classes that a folder's `config.json` can name as its own."""


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, with what makes its inputs.

    Attributes:
        checkpoint: Folder or Hub id.
        model: Of the class that the folder names.
        backbone: The same network as a `RadioModel`, with the adaptors that there are; the model itself if it is one.
        processor: What makes its pixels.
        tokenizer: Of a zero-shot model, else `None`.
    """

    checkpoint: str
    model: RadioPreTrainedModel
    backbone: RadioModel
    processor: RadioImageProcessor
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def dtype(self) -> str:
        """What it computes in, as `DTYPES` names it."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def zero_shot(self) -> RadioForZeroShotImageClassification | None:
        """The model, if it knows texts."""
        return self.model if isinstance(self.model, RadioForZeroShotImageClassification) else None

    @property
    def has_head(self) -> bool:
        """Whether it was tuned for a task of its own."""
        return type(self.model).__name__ in TASK_OF_CLASS and self.zero_shot is None

    @property
    def dense_adaptors(self) -> list[str]:
        """Adaptors with dense features, by the name of their teacher."""
        named = self.backbone.config.adaptor_configs
        in_folder = set(self.backbone.radio_model.adaptors)
        return [each.name for each in named if each.feature_dim is not None and each.name in in_folder]


def devices() -> list[str]:
    """Return the devices of this machine, the first of which is taken where none is asked for."""
    if torch.cuda.is_available():
        return [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]
    return ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]


def read_radio_config(checkpoint: str) -> dict[str, Any]:
    """Return what the `config.json` of a checkpoint says, ours or in NVIDIA's layout.

    Args:
        checkpoint: Folder or Hub id.

    Raises:
        ValueError: If it is no RADIO model.
        OSError: If there is no such folder or repository.
    """
    values, _ = PreTrainedConfig.get_config_dict(checkpoint)
    if "args" not in values and values.get("model_type") != modeling_radio.RadioConfig.model_type:
        raise ValueError(
            f"`checkpoint` must be a RADIO model, got {checkpoint!r} with the `model_type` "
            f"{values.get('model_type')!r:.60}."
        )
    return values


def open_model(
    checkpoint: str, device: str | None = None, dtype: str = "float32", num_global: int | None = None
) -> Opened:
    """Open a checkpoint of ours or in NVIDIA's layout; no code of its own is run.

    Args:
        checkpoint: Folder or Hub id.
        device: One of `devices`; `None` takes the first.
        dtype: One of `DTYPES`.
        num_global: Blocks that attend globally in ViTDet mode; `None` leaves the checkpoint's.

    Raises:
        ValueError: If it is no RADIO model, lacks weights, or device or type cannot be.
        OSError: If there is no such folder or repository.
    """
    device = devices()[0] if device is None else device
    check_choice("device", device, devices())
    check_choice("dtype", dtype, DTYPES)
    values = read_radio_config(checkpoint)
    is_nvidias = "args" in values
    options: dict[str, Any] = {} if num_global is None else {"vitdet_num_global": num_global}
    (name,) = (values.get("architectures") or ["RadioModel"])[:1]
    model_class = RadioModel if is_nvidias else MODELS.get(name, RadioModel)
    model, loaded = model_class.from_pretrained(
        checkpoint, dtype=DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    check_fit([], sorted(loaded["missing_keys"]), sorted(key for key, *_ in loaded["mismatched_keys"]))
    model = model.eval().to(device)
    return Opened(
        checkpoint=checkpoint,
        model=model,
        backbone=model if isinstance(model, RadioModel) else model.base_model.eval(),
        processor=_open_processor(checkpoint, model, is_nvidias=is_nvidias),
        tokenizer=_open_tokenizer(checkpoint, model),
    )


def _open_processor(checkpoint: str, model: RadioPreTrainedModel, *, is_nvidias: bool) -> RadioImageProcessor:
    """Return the processor of a folder of ours; of another the one that fits the model."""
    if not is_nvidias:
        try:
            return RadioImageProcessor.from_pretrained(checkpoint)
        except OSError:  # it has none
            pass
    return RadioImageProcessor.from_model_config(model.config)


def _open_tokenizer(checkpoint: str, model: RadioPreTrainedModel) -> PreTrainedTokenizerBase | None:
    if not isinstance(model, RadioForZeroShotImageClassification):
        return None
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(checkpoint))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint!r} has a text tower, but no tokenizer: convert it again with --text-tower."
        ) from error
