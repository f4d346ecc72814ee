"""What one fine-tuning run is asked to do, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.files import write_text
from modeling_radio.messages_radio import did_you_mean


BOX_TASKS = ("object-detection", "instance-segmentation")
TASKS = ("image-classification", "semantic-segmentation", *BOX_TASKS, "depth-estimation")
TUNE_METHODS = ("head", "lora", "dora", "rslora", "full")
ADAPTER_METHODS = ("lora", "dora", "rslora")
PRECISIONS = ("auto", "bf16", "fp32")
QUANTIZED_BITS = (4, 8)
BOX_FORMATS = ("xywh", "xyxy", "cxcywh")
BALANCED = "balanced"


@dataclass(frozen=True)
class FinetuneSettings:
    """One run; every field is an option of `python -m training.finetune`.

    Attributes:
        checkpoint: Folder or Hub id of the backbone (or of a task model to go on with).
        task: One of `TASKS`.
        data: Folder, file or Hub id of the labeled images; see `training/FINETUNING.md`.
        output: Folder of the run.
        tune: "head" trains the head on the frozen backbone, "full" everything, the others add low-rank adapters.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale times the rank (for rsLoRA times its root); None means twice the rank.
        lora_dropout: Dropout before the adapters, in [0, 1).
        lora_targets: Linear layers of every block that get an adapter; None means all of them.
        merge: Also write the model with its adapter merged, as a plain folder.
        quantize: 4 or 8 bits for the frozen weights (needs bitsandbytes); None for none.
        classes: Names of the classes in the order of their ids; None takes what the data says.
        class_weights: "balanced" (not for lists of labels), one weight for each class, or None; classification and
            semantic segmentation only.
        image_column: Column of the images; None finds it.
        target_column: Column of the labels, masks, boxes or depth maps; None finds it.
        box_format: How a `datasets` source states boxes, in pixels.
        depth_scale: Units of a stored depth value in a meter; None means 1000 for integers and 1 for floats.
        validation_share: Share of the images that is held out where the source has no split of its own.
        size: Height and width in pixels that images are resized to; None takes the checkpoint's preferred one.
        window_size: ViTDet window in tokens, "global" or "auto", kept in the saved configuration; None leaves the
            checkpoint's.
        crop_area_min: Smallest share of the image that a random crop keeps; 1 crops nothing.
        flip_probability: Probability of a horizontal flip.
        color_jitter: Strength of random brightness, contrast and saturation; 0 for none.
        epochs: Passes over the training images.
        steps: Optimiser steps; overrides `epochs`.
        batch_size: Images a device and forward pass.
        accumulation: Forward passes a step.
        learning_rate: Peak of the backbone's last block or of the adapters; None takes the method's default.
        head_learning_rate: Peak of the head; None takes the method's default.
        layer_decay: Factor on the learning rate from each block to the one below it; 1 is uniform.
        weight_decay: Of matrices; biases, norms, tokens and positions have none.
        warmup_share: Share of the steps with rising learning rate.
        max_grad_norm: Gradients are clipped to this norm; 0 clips nothing.
        precision: "bf16" computes in bfloat16, "fp32" does not; "auto" takes bfloat16 on a GPU that has it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        evaluate_every: Steps between evaluations; None evaluates after every epoch.
        patience: Evaluations without a better metric after which the run ends; None never ends early.
        seed: Of new weights, the split, the order and the augmentation.
        num_workers: Processes that load images; 0 loads in the main process.
        config: Fields of the model's configuration to change, such as `detection_num_queries`.
    """

    checkpoint: str
    task: str
    data: str
    output: Path
    tune: str = "head"
    lora_rank: int = 16  # our choice, with alpha of twice the rank: the usual start for vision transformers
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] | None = None
    merge: bool = False
    quantize: int | None = None
    classes: tuple[str, ...] | None = None
    class_weights: str | tuple[float, ...] | None = None
    image_column: str | None = None
    target_column: str | None = None
    box_format: str = "xywh"
    depth_scale: float | None = None
    validation_share: float = 0.1
    size: tuple[int, int] | None = None
    window_size: int | str | None = None
    crop_area_min: float = 0.35  # our choice between torchvision's 0.08 for training from scratch and no crop
    flip_probability: float = 0.5
    color_jitter: float = 0.2
    epochs: float = 10.0
    steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_grad_norm: float = 1.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    evaluate_every: int | None = None
    patience: int | None = None
    seed: int = 0
    num_workers: int = 2
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("task", self.task, TASKS)
        _check_choice("tune", self.tune, TUNE_METHODS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("box_format", self.box_format, BOX_FORMATS)
        self._check_numbers()
        if self.quantize is not None and self.quantize not in QUANTIZED_BITS:
            raise ValueError(f"`quantize` must be 4 or 8 (bits), got {self.quantize}.")
        for name in ("quantize", "merge"):
            if getattr(self, name) and not self.uses_adapter:
                raise ValueError(f"`{name}` needs an adapter: choose `tune` out of {', '.join(ADAPTER_METHODS)}.")
        if self.class_weights is not None and self.task not in ("image-classification", "semantic-segmentation"):
            raise ValueError(f"`class_weights` is not for {self.task}: it has no loss over classes that takes weights.")
        if isinstance(self.class_weights, str) and self.class_weights != BALANCED:
            raise ValueError(f"`class_weights` must be {BALANCED!r} or numbers, got {self.class_weights!r}.")

    def _check_numbers(self) -> None:
        rules = {
            "lora_rank": (self.lora_rank >= 1, "at least 1"),
            "lora_alpha": (self.lora_alpha is None or self.lora_alpha > 0, "above 0"),
            "lora_dropout": (0 <= self.lora_dropout < 1, "in [0, 1)"),
            "validation_share": (0 < self.validation_share < 1, "in (0, 1)"),
            "crop_area_min": (0 < self.crop_area_min <= 1, "in (0, 1]"),
            "flip_probability": (0 <= self.flip_probability <= 1, "in [0, 1]"),
            "color_jitter": (0 <= self.color_jitter <= 1, "in [0, 1]"),
            "epochs": (self.epochs > 0, "above 0"),
            "steps": (self.steps is None or self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulation": (self.accumulation >= 1, "at least 1"),
            "learning_rate": (self.learning_rate is None or self.learning_rate >= 0, "at least 0"),
            "head_learning_rate": (self.head_learning_rate is None or self.head_learning_rate >= 0, "at least 0"),
            "layer_decay": (0 < self.layer_decay <= 1, "in (0, 1]"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "warmup_share": (0 <= self.warmup_share < 1, "in [0, 1)"),
            "max_grad_norm": (self.max_grad_norm >= 0, "at least 0"),
            "evaluate_every": (self.evaluate_every is None or self.evaluate_every >= 1, "at least 1"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1"),
            "depth_scale": (self.depth_scale is None or self.depth_scale > 0, "above 0"),
            "num_workers": (self.num_workers >= 0, "at least 0"),
        }
        for name, (is_valid, rule) in rules.items():
            if not is_valid:
                raise ValueError(f"`{name}` must be {rule}, got {getattr(self, name)}.")

    @property
    def uses_adapter(self) -> bool:
        """Whether low-rank adapters are trained."""
        return self.tune in ADAPTER_METHODS

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON objects."""
        values = dataclasses.asdict(self)
        return json.loads(json.dumps({**values, "output": str(self.output)}))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.{hint}")
