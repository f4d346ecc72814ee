"""Settings of `training.evaluate`, and the protocols of the papers by name."""

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
"""Settings by protocol; settings that the user gives replace them."""


class EvaluationSettings(RecipeCommand, DataOptions, TaskSettings):
    """Settings of an evaluation.

    Attributes:
        checkpoint: Folder with config.json and weights.
        data: Folder with a sub-folder of images for each class, or `images/` and `masks/` or `depth/`, with or without
            `train/` and `test/` above; `.parquet` or `.tar` files; a data set that `datasets` saved; `hub:ORG/NAME`; or
            demo. By default the data of the recipe.
        recipe: Recipe that names data and teachers, or a file of your own that ends in .yaml.
        tasks: Tasks to measure; by default knn and segmentation_probe, as far as the data allow.
        preset: Protocol with defaults of other settings; for the demo's images, by default the demo's.
        size: Shorter side of the images in pixels; by default that of the checkpoint's processor.
        output: JSON file for the numbers; earlier results in it are replaced.
        baselines: Baselines in the tables of tasks that have any: the pixels themselves, or a network of the same
            architecture with random weights.
        compare: Other models in the same table: folders of ours, of NVIDIA's layout, of transformers or timm;
            `ORG/NAME` of the Hub; `timm:NAME`; `teacher:KIND` or `teacher:KIND:SOURCE`.
        report: Whether a page of the numbers with images, one HTML file, is written beside `output`.
        cache: Folder of extracted features, so that a stopped run goes on and later runs are faster.
        batch_size: Images for each pass.
        num_workers: Processes that decode images if there are many.
        precision: Number format in which the checkpoint computes.
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
        """Add the settings of a preset."""
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(str(values.get("preset")), {}), **values}

    def for_source(self, source: str) -> EvaluationSettings:
        """Return these settings, with the preset of the demo for the demo's images if no preset is given.

        Args:
            source: `data`, or the recipe's data if it is left out.
        """
        if self.preset is not None or source not in DEMO_SOURCES:
            return self
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**given | {"preset": "demo"})

    def of_tasks(self) -> dict[str, Any]:
        """Return the settings that decide the numbers, for the results file."""
        decisive = [*TaskSettings.model_fields, *DataOptions.model_fields, "preset", "size", "precision"]
        return {name: value for name, value in self.to_dict().items() if name in decisive}
