"""Settings of a fine-tuning run, checked before anything is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from modeling_radio.core.files import write_text
from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import (
    DeviceOptions,
    OneOf,
    Settings,
    SettingsError,
    Spelling,
    read_yaml,
    require,
)
from modeling_radio.data.settings import LabeledData
from modeling_radio.tasks_radio import TASKS


ADAPTER_METHODS = ("lora", "dora", "rslora")
BALANCED = "balanced"
SETTINGS = "settings.json"
"""File of the settings in the folder of a run."""


def read_size(text: str) -> tuple[int, int]:
    """Return the height and width of `PX` or `HxW`."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


class MethodSettings(Settings):
    """Settings of the trained weights.

    Attributes:
        tune: "head" trains the head on the frozen backbone, "full" everything, the others add low-rank adapters.
        lora_rank: Rank of the adapters.
        lora_alpha: Scale of the adapters times the rank (for rsLoRA times its root); by default twice the rank.
        lora_dropout: Dropout before the adapters, in [0, 1).
        lora_targets: Linear layers of every block that get an adapter; by default all of them.
        merge: Also write the model with its adapter merged, as a plain folder.
        quantize: 4 or 8 bits for the frozen weights (needs bitsandbytes); by default they are not quantized.
        window_size: ViTDet window in tokens, "global" or "auto", kept in the saved configuration; by default the
            checkpoint's.
    """

    title: ClassVar[str] = "what is trained"

    tune: Literal["head", "lora", "dora", "rslora", "full"] = "head"
    lora_rank: int = Field(16, ge=1)  # our choice, with alpha of twice the rank: a usual start
    lora_alpha: float | None = Field(None, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] | None = Field(None, min_length=1)
    merge: bool = False
    quantize: Literal[4, 8] | None = None
    window_size: Annotated[int | str | None, Spelling(read_yaml, "TOKENS|global|auto")] = None


class TaskDataSettings(LabeledData):
    """Settings of a task and its images, by which a model is tuned or measured.

    Attributes:
        checkpoint: Folder or Hub id of the backbone, or of a task model to train further.
        task: Task of the model, or the import path of a `FinetuningTask` of your own, "my_package.my_module:MyTask".
        size: Height and width in pixels that images are resized to; by default the checkpoint's preferred one.
        class_weights: "balanced" (not for lists of labels), or one weight for each class; classification and
            semantic segmentation only.
        sampler: Images of an epoch; by default each once. "balanced" shows every class equally often (one class an
            image), "repeat-factor" repeats images of rare classes.
        rgb_channels: Experimental. The channels that are red, green and blue, from 0: they keep the checkpoint's
            weights, and figures show them; by default the first three.
        batch_size: Images for each device and forward pass.
        num_workers: Processes that load images; 0 loads in the main process.
        config: Fields of the model's configuration to change, such as `detection_num_queries`.
    """

    title: ClassVar[str] = "data"

    checkpoint: Annotated[ModelId, Field(min_length=1)]
    task: Annotated[str, OneOf([name for name, task in TASKS.items() if task.tuning is not None], imports=True)]
    size: Annotated[tuple[int, int] | None, Spelling(read_size, "PX|HxW")] = None
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    sampler: Literal["balanced", "repeat-factor"] | None = None
    rgb_channels: tuple[int, ...] | None = None
    batch_size: int = Field(16, ge=1)
    num_workers: int = Field(2, ge=0)
    config: dict[str, Any] = {}


class DataSettings(TaskDataSettings):
    """Settings of the images and their augmentation.

    Attributes:
        streaming: Read the training images in order while training, without a copy on the disk: for labels of whole
            images in Parquet or webdataset files or on the Hub; needs `steps` and `evaluate_every`.
        augment: Random changes of training images: "none"; "light", small crops and colors; or "photographs", large
            crops, mirror images and colors. By default "none" for labels of whole images, else "photographs".
        seed: Seed of new weights, the split, the order and the augmentation.
    """

    title: ClassVar[str] = "data"

    augment: Literal["none", "light", "photographs"] | None = None
    seed: int = Field(0, ge=0, lt=2**32)  # the range of NumPy


class ScheduleSettings(Settings):
    """Settings of the schedule and the optimizer.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimizer steps; overrides `epochs`.
        accumulation: Forward passes for each step.
        learning_rate: Peak of the backbone's last block or of the adapters; by default the task's, for a ViT-B 5e-5
            or 5e-4 (boxes: 1e-5, 1e-4), and twice as much at half its width; for labels of whole images on a network
            with batch norms 1e-3.
        head_learning_rate: Peak of the head; by default that of the backbone for a linear head, which is solved before,
            else the task's, 1e-3, for boxes and texts 1e-4.
        layer_decay: Factor on the learning rate from each block to the one below it; 1 is uniform.
        weight_decay: Weight decay of matrices; biases, norms, tokens and positions have none.
        dtype: Type in which the model computes; "auto" takes bfloat16 on a GPU that supports it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        evaluate_every: Steps between evaluations; by default those of an epoch.
        patience: Number of evaluations without a better metric (or an equal one with a lower loss) after which the run
            ends; by default it never ends early.
    """

    title: ClassVar[str] = "schedule"

    epochs: float = Field(10.0, gt=0)
    steps: int | None = Field(None, ge=1)
    accumulation: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, ge=0)
    head_learning_rate: float | None = Field(None, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    evaluate_every: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=1)


def _default_output(earlier: dict[str, Any]) -> Path:
    return Path("runs", f"finetune-{str(earlier.get('task')).rpartition(':')[2]}")


class FinetuneSettings(ScheduleSettings, DataSettings, MethodSettings, DeviceOptions):
    """Settings of a run; every field is an option of `radio finetune`.

    Attributes:
        output: Folder of the run; by default runs/finetune-TASK.
    """

    model_config = ConfigDict(frozen=True)

    output: Path = Field(default_factory=_default_output)

    @model_validator(mode="after")
    def _check(self) -> "FinetuneSettings":
        for name in ("quantize", "merge"):
            if getattr(self, name) and not self.uses_adapter:
                raise SettingsError(f"`{name}` needs an adapter: choose `tune` out of {', '.join(ADAPTER_METHODS)}.")
        if isinstance(self.class_weights, tuple):
            is_weight = min(self.class_weights, default=-1) >= 0 and max(self.class_weights) > 0
            require(is_weight, "class_weights", self.class_weights, "numbers of at least 0, one of them above 0")
        require(self.size is None or min(self.size) >= 1, "size", self.size, "sides of at least 1 pixel")
        if self.window_size is not None:
            from modeling_radio.inputs_radio import check_window_size  # takes seconds; `--help` need not wait

            check_window_size(self.window_size)
        if self.streaming:
            self._check_streaming()
        return self

    def _check_streaming(self) -> None:
        for name in ("steps", "evaluate_every"):
            require(getattr(self, name) is not None, name, None, "a number with `streaming`, which has no epochs")
        for name in ("sampler", "class_weights"):
            if isinstance(getattr(self, name), str):
                raise SettingsError(f"`{name}` {getattr(self, name)!r} counts the images: leave it or `streaming` out.")

    @property
    def uses_adapter(self) -> bool:
        """True if low-rank adapters are trained."""
        return self.tune in ADAPTER_METHODS

    @classmethod
    def with_newer(cls, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return stored settings, with the defaults of those that did not exist when they were written."""
        fields = cls.model_fields.items()
        return {**{name: field.default for name, field in fields if not field.is_required()}, **stored}

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")
