"""What is tuned on, and how: tasks with their data and common settings, and ways of tuning that each change these.

All numbers are our choice, made on other images (draw 0), or what is tried against them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.files import write_folder
from training.demo_kit.labeled.folders import (
    write_depths,
    write_digits,
    write_masks,
    write_objects,
    write_single_subjects,
    write_subjects,
)
from training.finetuning.settings import FinetuneSettings


FIRST_DRAW = 1  # draw 0 is that of the demo's evaluation, on which settings were chosen
HEAD, LORA, FULL = "head", "LoRA", "full"


@dataclass(frozen=True)
class Arm:
    """One way of tuning.

    Attributes:
        options: Settings in place of the experiment's.
        reason: What it is, or what would be true if it won.
        every: Its training scenes show every object (1), every second one (2), and so on.
        after: The arm whose model, with the same seed, it goes on with.
        is_random: Whether the backbone starts from random weights.
        teacher: The kind of teacher that takes the backbone's place.
    """

    options: Mapping[str, Any]
    reason: str
    every: int = 1
    after: str | None = None
    is_random: bool = False
    teacher: str | None = None


@dataclass(frozen=True)
class Experiment:
    """What is compared for one task; all numbers are our choice.

    Attributes:
        task: Of `training.finetune`.
        write: Writes the images below a folder; it takes their side in pixels, which draw of them and, where an arm
            shows fewer objects, `every`.
        size: Side of the images in pixels.
        options: Settings that all methods share.
        frozen: What the method is that trains the head alone.
        arms: Ways of tuning that this task has beside `METHODS`.
        seed_0_alone: Arms that other seeds run only when they are named, because they take long.
        teachers: Which of the demo's teachers can be probed with a head of one layer.
        has_words: Whether the student is the one with a text tower.
    """

    task: str
    write: Callable[..., None]
    size: int
    options: dict[str, Any]
    frozen: str
    arms: Mapping[str, Arm] = field(default_factory=dict)
    seed_0_alone: Collection[str] = ()
    teachers: Sequence[str] = ()
    has_words: bool = False

    def settings(self, seed: int, **own: Any) -> FinetuneSettings:
        """Return the settings of one run, which is measured once, after its last step.

        Args:
            seed: Of the run and of its images.
            own: Checkpoint, data and output of the run, and what it changes of `options`.
        """
        usual = {"size": (self.size, self.size), "precision": "bf16", "max_grad_norm": 1.0}  # as on a GPU
        usual |= RATES[own.get("tune", "head")]
        options = {**usual, **self.options, **own}
        return FinetuneSettings(task=self.task, evaluate_every=options["steps"], num_workers=0, seed=seed, **options)  # pyrefly: ignore[bad-argument-type]

    def write_data(self, settings: FinetuneSettings, every: int = 1) -> None:
        """Write the images of a run, with every object or some, if they are not there yet."""
        data, size = Path(settings.data), settings.size
        assert size is not None
        if not data.is_dir():
            fewer = {} if every == 1 else {"every": every}
            write_folder(data, lambda folder: self.write(folder, size[0], FIRST_DRAW + settings.seed, **fewer))


RATES: Mapping[str, Mapping[str, float]] = {
    "head": {},
    "lora": {"learning_rate": 5e-4},
    "dora": {"learning_rate": 5e-4},
    "rslora": {"learning_rate": 5e-4},
    "full": {"learning_rate": 5e-5},
}
"""Where neither a task nor an arm has another: usual for backbones of the published sizes."""

WHOLE_IMAGES = {"crop_area_min": 1.0, "color_jitter": 0.0}  # scenes are composed anew, and digits fill their image

AUGMENTED = {"crop_area_min": 0.35, "color_jitter": 0.2}  # the command's own
SEGMENTER: dict[str, Any] = {
    "steps": 400,
    "batch_size": 16,
    "head_learning_rate": 2e-3,
    "learning_rate": 1e-3,
    "lora_rank": 8,
    **WHOLE_IMAGES,
}

DPT: dict[str, Any] = {**SEGMENTER, "head_learning_rate": 1e-3}  # twenty convolutions without norms between them

DETECTOR_SIZE = 192  # more patches than at 128 pixels: boxes fit closer
DETECTOR: dict[str, Any] = {
    "steps": 500,
    "batch_size": 16,
    "head_learning_rate": 7e-4,
    "max_grad_norm": 0.1,
    "config": {"detection_num_queries": 20, "detection_hidden_size": 96, "detection_num_groups": 3},
    **WHOLE_IMAGES,
}

TEACHERS = ("efficientnet-lite0", "dinov2-s-saliency", "nanodet-g")
"""The demo's."""

COSTLY = {"DoRA", "rsLoRA"}  # where a run takes minutes, one seed of what LoRA is nearly
FEW_CLASSES = {"flip_probability": 0.0, **WHOLE_IMAGES}

FASTER = "LoRA at 4e-3"
FASTER_LORA = Arm({"tune": "lora", "learning_rate": 4e-3}, "adapters learn too slowly")
LORA_WITH_DECAY = "LoRA with layer decay"
DECAYED = Arm({"tune": "lora", "layer_decay": 0.75}, "lower blocks have to stay, as full tuning's do")

DETECTION_ARMS = {
    "head for half the steps": Arm({"tune": "head", "steps": 250}, "the decoder may only lack time"),
    "LoRA for half the steps": Arm({"tune": "lora", "steps": 250}, "the decoder may only lack time"),
    "head for twice the steps": Arm({"tune": "head", "steps": 1000}, "the decoder may only lack time"),
    "LoRA for twice the steps": Arm(
        {"tune": "lora", "steps": 1000}, "adapters learn little from a decoder of random weights"
    ),
    "LoRA after head": Arm(
        {"tune": "lora"},
        "first the decoder, then both: gradients of a random decoder distort features (arXiv:2202.10054); beside "
        "'head for twice the steps'",
        after=HEAD,
    ),
    "LoRA at 1e-4": Arm({"tune": "lora", "learning_rate": 1e-4}, "adapters learn too fast"),
    "LoRA at 2e-3": Arm({"tune": "lora", "learning_rate": 2e-3}, "adapters learn too slowly"),
    "LoRA on qkv alone": Arm({"tune": "lora", "lora_targets": ("qkv",)}, "fewer parameters to fit 134 cut-outs with"),
    "LoRA with norms": Arm({"tune": "lora", "train_norms": True}, "frozen norms hold features where they are"),
    LORA_WITH_DECAY: DECAYED,
    "LoRA with free gradients": Arm(
        {"tune": "lora", "max_grad_norm": 1.0}, "clipping to 0.1 follows the decoder's gradients"
    ),
    "head augmented": Arm({"tune": "head", **AUGMENTED}, "the decoder fits the cut-outs that it sees"),
    "LoRA augmented": Arm({"tune": "lora", **AUGMENTED}, "adapters fit the cut-outs that they see"),
    "head on a quarter": Arm({"tune": "head"}, "what adapters learn beyond the head is the cut-outs they see", every=4),
    "LoRA on a quarter": Arm({"tune": "lora"}, "what adapters learn beyond the head is the cut-outs they see", every=4),
    "head at 256 px": Arm({"tune": "head", "size": (256, 256)}, "small boxes need a finer grid"),
    "LoRA at 256 px": Arm({"tune": "lora", "size": (256, 256)}, "small boxes need a finer grid"),
}
"""Why LoRA gained nothing over a frozen backbone on boxes: each arm changes what one explanation blames."""

CLASSIFIER_ARMS = {
    "head at 1e-4": Arm({"tune": "head", "head_learning_rate": 1e-4}, "the head learns too fast"),
    "head at 1e-2": Arm({"tune": "head", "head_learning_rate": 1e-2}, "the head learns too slowly"),
    "LoRA at 1e-4": Arm({"tune": "lora", "learning_rate": 1e-4}, "adapters learn too fast"),
    "LoRA at 2e-3": Arm({"tune": "lora", "learning_rate": 2e-3}, "adapters learn too slowly"),
    "LoRA with head at 1e-2": Arm({"tune": "lora", "head_learning_rate": 1e-2}, "its head learns too slowly"),
    "LoRA of rank 4": Arm({"tune": "lora", "lora_rank": 4}, "adapters have more room than they need"),
    "LoRA of rank 64": Arm({"tune": "lora", "lora_rank": 64}, "adapters lack room"),
    "LoRA on qkv alone": Arm({"tune": "lora", "lora_targets": ("qkv",)}, "attention is all that has to change"),
    "full at 2e-4": Arm({"tune": "full", "learning_rate": 2e-4, "layer_decay": 0.75}, "the backbone learns too slowly"),
    "full at 5e-4": Arm({"tune": "full", "learning_rate": 5e-4, "layer_decay": 0.75}, "the backbone learns too slowly"),
    "full without decay": Arm({"tune": "full", "layer_decay": 1.0}, "lower blocks have to change as much"),
}
"""What the command's own rates, rank and targets are held against, where a run takes half a minute."""

MULTI_LABEL_ARMS = {
    "head at 4e-3": Arm({"tune": "head", "head_learning_rate": 4e-3}, "the head learns too slowly"),
    "LoRA at 2e-3": Arm({"tune": "lora", "learning_rate": 2e-3}, "adapters learn too slowly"),
    "full at 2e-4": Arm({"tune": "full", "learning_rate": 2e-4, "layer_decay": 0.75}, "the backbone learns too slowly"),
}
"""Four times the usual rates, which the command takes by itself at a quarter of ViT-B's width."""

SEGMENTER_ARMS = {
    "head at 1e-2": Arm({"tune": "head", "head_learning_rate": 1e-2}, "the head learns too slowly"),
    "LoRA at 2e-4": Arm({"tune": "lora", "learning_rate": 2e-4}, "adapters learn too fast"),
    FASTER: FASTER_LORA,
    "LoRA of rank 32": Arm({"tune": "lora", "lora_rank": 32}, "adapters lack room"),
    "LoRA on qkv alone": Arm({"tune": "lora", "lora_targets": ("qkv",)}, "attention is all that has to change"),
    "full at 2e-4": Arm({"tune": "full", "learning_rate": 2e-4, "layer_decay": 0.75}, "the backbone learns too fast"),
    "full without decay": Arm({"tune": "full", "layer_decay": 1.0}, "lower blocks have to change as much"),
    "LoRA augmented": Arm({"tune": "lora", **AUGMENTED}, "adapters fit the cut-outs that they see"),
    "LoRA with windows": Arm(
        {"tune": "lora", "window_size": 4, "config": {"vitdet_num_global": 2}},
        "windows of 4 by 4 patches, of 8 by 8, in four of six blocks cost nothing",
    ),
    "head at 192 px": Arm({"tune": "head", "size": (192, 192)}, "masks need a finer grid"),
    "LoRA at 192 px": Arm({"tune": "lora", "size": (192, 192)}, "masks need a finer grid"),
}
"""The same for masks, with augmentation, windows and resolution."""

INSTANCE_ARMS = {
    "head for twice the steps": Arm({"tune": "head", "steps": 600}, "the decoder lacks time"),
    "LoRA for twice the steps": Arm({"tune": "lora", "steps": 600}, "adapters learn little from an untrained decoder"),
}
"""Masks are most of the loss, and keep boxes from learning as fast as alone."""

DEPTH_ARMS = {
    "LoRA at 2e-4": Arm({"tune": "lora", "learning_rate": 2e-4}, "adapters learn too fast"),
    FASTER: FASTER_LORA,
    "LoRA of rank 64": Arm({"tune": "lora", "lora_rank": 64}, "adapters lack room"),
    LORA_WITH_DECAY: DECAYED,
    "full without decay": Arm({"tune": "full", "layer_decay": 1.0}, "lower blocks have to change as much"),
}
"""Depth of scenes that few photographs make is learned by heart soon; full tuning gained there, adapters did not."""

EXPERIMENTS = {
    "image-classification": Experiment(
        "image-classification",
        write_digits,
        64,  # eight times the digits' own
        {"steps": 200, "batch_size": 32, "head_learning_rate": 1e-3, **FEW_CLASSES},
        "frozen linear probe",
        CLASSIFIER_ARMS,
        teachers=TEACHERS,
    ),
    "multi-label": Experiment(
        "image-classification",
        write_subjects,
        128,
        {"steps": 200, "batch_size": 32, "head_learning_rate": 1e-3, **WHOLE_IMAGES},
        "frozen linear probe",
        MULTI_LABEL_ARMS,
        seed_0_alone=COSTLY,
        teachers=TEACHERS,
    ),
    "semantic-segmentation": Experiment(
        "semantic-segmentation",
        write_masks,
        128,  # as the demo's student was trained
        SEGMENTER,
        "frozen linear probe",
        SEGMENTER_ARMS,
        seed_0_alone=SEGMENTER_ARMS,
        teachers=TEACHERS,
    ),
    "semantic-segmentation-dpt": Experiment(
        "semantic-segmentation",
        write_masks,
        128,
        {**DPT, "config": {"segmentation_head": "dpt", "dpt_hidden_size": 32}},
        "DPT on the frozen backbone",
        {FASTER: FASTER_LORA},
        seed_0_alone=COSTLY,
    ),
    "object-detection": Experiment(
        "object-detection",
        write_objects,
        DETECTOR_SIZE,
        DETECTOR,
        "decoder on the frozen backbone",
        DETECTION_ARMS,
        seed_0_alone=COSTLY | DETECTION_ARMS.keys(),
    ),
    "instance-segmentation": Experiment(
        "instance-segmentation",
        write_objects,
        128,  # masks take longer than boxes
        {**DETECTOR, "steps": 300},
        "decoder on the frozen backbone",
        INSTANCE_ARMS,
        seed_0_alone=COSTLY | INSTANCE_ARMS.keys(),
    ),
    "zero-shot-image-classification": Experiment(
        "zero-shot-image-classification",
        write_single_subjects,
        128,
        {"steps": 200, "batch_size": 32, "head_learning_rate": 1e-4, **WHOLE_IMAGES},
        "projection on the frozen backbone",
        seed_0_alone=COSTLY,
        teachers=TEACHERS[:1],  # in whose space the words are
        has_words=True,
    ),
    "depth-estimation": Experiment(
        "depth-estimation",
        write_depths,
        128,
        {**DPT, "config": {"dpt_hidden_size": 32}},
        "DPT on the frozen backbone",
        DEPTH_ARMS,
        seed_0_alone=COSTLY,
        teachers=TEACHERS,
    ),
}

METHODS: Mapping[str, Arm] = {
    HEAD: Arm({"tune": "head"}, "the frozen backbone"),
    LORA: Arm({"tune": "lora"}, "low-rank adapters"),
    "DoRA": Arm({"tune": "dora"}, "adapters with magnitudes"),
    "rsLoRA": Arm({"tune": "rslora"}, "adapters whose scale does not fall with the rank"),
    FULL: Arm({"tune": "full", "layer_decay": 0.75}, "everything"),
    "full from random weights": Arm(
        {"tune": "full", "learning_rate": 5e-4}, "a ViT of equal size that was never trained", is_random=True
    ),
}
"""Of every task. Names have no commas: the command takes them in a list."""


def arms_of(experiment: Experiment) -> dict[str, Arm]:
    """Return all ways of tuning for a task by name, its teachers' probes last."""
    probes = {
        f"teacher {name}": Arm({}, "one layer on the frozen teacher", teacher=name) for name in experiment.teachers
    }
    return {**METHODS, **experiment.arms, **probes}
