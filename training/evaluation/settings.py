"""What `training.evaluate` is asked to do, and the protocols of the papers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from core.settings import OneOf
from training.data.sources import DEMO_SOURCES
from training.evaluation.data_tables import IMAGENET, DataOptions
from training.evaluation.tasks.base import TaskSettings
from training.evaluation.tasks.registry import RETRIEVAL, TASKS
from training.recipe import RecipeCommand


PRESETS: dict[str, dict[str, Any]] = {
    # 5 neighbors are our choice for the demo's sets, some of whose classes have fewer images than the papers' 20.
    "demo": {"neighbors": 5},
    # AM-RADIO, https://arxiv.org/abs/2312.06709; prompts of CLIP, https://arxiv.org/abs/2103.00020
    IMAGENET: {
        "tasks": ["knn", "zero_shot"],
        "neighbors": 20,
        "temperature": 0.07,
        "templates": "openai",
        "class_names": IMAGENET,
    },
    # The published probe: batch norm and a linear layer, 80k steps of 16 windows of 512 px.
    "ade20k": {
        "tasks": ["segmentation_probe"],
        "size": 512,
        "window_px": 512,
        "reduce_labels": True,
        "probe_steps": 80_000,
        "probe_learning_rate": 1e-3,
        "probe_warmup_steps": 1500,
        "probe_schedule": "linear",
    },
}
"""Settings by protocol; what is given besides wins."""


class EvaluationSettings(RecipeCommand, DataOptions, TaskSettings):
    """What shall be measured.

    Attributes:
        checkpoint: Folder with config.json and weights.
        data: Folder with a sub-folder of images for each class, or `images/` and `masks/` or `depth/`, with or without
            `train/` and `test/` above; `.parquet` or `.tar` files; a data set that `datasets` saved; `hub:ORG/NAME`; or
            demo. What the recipe is trained on where it is left out.
        recipe: Recipe that names data and teachers, or a file of your own that ends in .yaml.
        tasks: What to measure; by default knn and segmentation_probe, as far as the data have something for them.
        preset: Protocol that gives what is not given here; of the demo's images the demo's.
        size: Shorter side of the images in pixels; by default as the checkpoint's processor has it.
        output: File that the numbers are also written to, as JSON; earlier results in it are replaced.
        baselines: Measured beside the checkpoint where a task compares: the pixels themselves, or a network of the same
            architecture with random weights.
        compare: Other models in the same table: folders of ours, of NVIDIA's layout, of transformers or timm;
            `ORG/NAME` of the Hub; `timm:NAME`; `teacher:KIND` or `teacher:KIND:SOURCE`.
        report: Whether a page of the numbers with pictures, one HTML file, is written beside `output`.
        cache: Folder in which features are kept, so that a run that was stopped goes on and others need not wait.
        batch_size: Images for each pass.
        num_workers: Processes that decode images where there are many.
        precision: What the checkpoint computes in.
    """

    checkpoint: Path
    data: str | None = None
    tasks: Annotated[list[str] | None, OneOf({**TASKS, RETRIEVAL: None})] = Field(None, min_length=1)
    preset: Annotated[str | None, OneOf(PRESETS)] = None
    size: int | None = Field(None, gt=0)
    output: Path | None = None
    baselines: list[Literal["pixels", "random"]] = ["pixels"]
    compare: list[str] = []
    report: bool = True
    cache: Path = Path("runs/cache/evaluation")
    batch_size: int = Field(32, gt=0)
    num_workers: int = Field(2, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """Let a preset give what is not given."""
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(str(values.get("preset")), {}), **values}

    def for_source(self, source: str) -> EvaluationSettings:
        """Return the settings for what is measured: without a preset the demo's for its images, and for no others.

        Args:
            source: `data`, or the recipe's where it is left out.
        """
        if self.preset is not None or source not in DEMO_SOURCES:
            return self
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**given | {"preset": "demo"})

    def of_tasks(self) -> dict[str, Any]:
        """Return what decides the numbers, for the results file."""
        decisive = [*TaskSettings.model_fields, *DataOptions.model_fields, "preset", "size", "precision"]
        return {name: value for name, value in self.to_dict().items() if name in decisive}
