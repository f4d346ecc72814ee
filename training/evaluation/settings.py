"""Settings of `radio evaluate`, the names of the tasks, and the protocols of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from modeling_radio.core.settings import OneOf, Settings, Spelling, read_names, require
from modeling_radio.training.recipe import RecipeCommand
from modeling_radio.training.recipe_sections import DEMO_SOURCES


IMAGENET = "imagenet-1k"

TASK_NAMES = (
    "knn",
    "logistic_regression",
    "zero_shot",
    "image_retrieval",
    "image_text_retrieval",
    "segmentation_probe",
    "open_vocabulary",
    "depth_probe",
    "patch_correspondence",
    "out_of_distribution",
    "resolution_consistency",
    "mode_switching",
    "window_consistency",
    "adaptor_fidelity",
    "fidelity_over_sizes",
    "knn_over_tokens",
    "segmentation_over_tokens",
    "fidelity_over_tokens",
    "model_similarity",
    "effective_rank",
    "feature_statistics",
    "fixed_pattern",
    "shift_error",
    "block_norms",
    "model_statistics",
    "self_supervised",
    "position_predictor",
)
"""Names of the tasks in `tasks/registry.py`; this module does not import them, so that `--help` is fast."""

RETRIEVAL = "retrieval"
"""Short name of the two retrieval tasks, as far as the data have labels or captions."""

RADSEG_STEPS = ("scra", "scga", "sliding", "denoising")
"""Arguments of `RadioForZeroShotImageClassification.segment`."""


class DataOptions(Settings):
    """Columns, splits and units of a source.

    Attributes:
        image_column: Column of the images; by default the first of the usual names, like all columns.
        label_column: Column of the classes.
        mask_column: Column of the masks of class ids.
        depth_column: Column of the depth maps.
        caption_column: Column of the texts, one or a list for each image.
        group_column: Column of the source of each image, such as its video: intervals resample whole sources, and
            without a train split images of one source are not compared with each other.
        train_split: Split that probes are trained on and queries are compared with; by default train.
        test_split: Split that is measured; by default the first of validation, valid, val, dev and test.
        class_names: File with the name of a class on each line, in the order of their ids; or "imagenet-1k" for the
            names of its thousand classes in words.
        reduce_labels: Ignore 0 in masks and lower all other classes by one, as in ADE20k.
        depth_scale: Units per meter of stored depth; by default 1000 for whole numbers and 1 for others.
        max_images: Number of images of each split to measure, a seeded choice; by default all.
    """

    image_column: str | None = None
    label_column: str | None = None
    mask_column: str | None = None
    depth_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    class_names: str | None = None
    reduce_labels: bool = False
    depth_scale: float | None = None
    max_images: int | None = None


class TaskSettings(Settings):
    """Settings of the tasks; the defaults follow the papers' protocols where there are any.

    Attributes:
        neighbors: Number of neighbors that vote in kNN, at most the gallery's images. 20 as in the papers.
        temperature: Divides the cosine in the exponent of a vote's weight. 0.07 as in the papers.
        logistic_c: Inverse strength of the logistic regression's penalty, on standardized features.
        recall_at: Ranks up to which retrieval counts.
        templates: Prompts for the names of classes: OpenAI's 80, as in the papers, seven of them, or the bare name.
        zero_shot_sizes_px: Further sizes at which zero-shot accuracy is measured; none by default.
        probe_steps: Optimizer steps of segmentation and depth probes. 400 for some hundred images; the papers run
            80,000 or 160,000 on ADE20k.
        probe_learning_rate: Peak of AdamW without weight decay. The papers' 1e-3 tripled, for the short schedule.
        probe_warmup_steps: Steps over which the learning rate rises; 1500 in the papers.
        probe_schedule: Fall of the learning rate after that: a cosine, or a straight line as in the papers.
        window_px: Side of the windows of dense tasks; by default the model's own size.
        radseg: Steps of RADSeg in open-vocabulary segmentation, see `segment`: scra, scga, sliding, denoising. Without
            sliding the network sees squares as high as the image.
        dense_source: Network that maps patches to the space of texts; see `segment`.
        consistency_sizes_px: Sides of the middle squares whose features are compared, the largest with each of the
            others; by default the range of the published models at low resolution, and one step beyond.
        switching_sizes_px: Sides of middle squares for mode switching: kNN and adaptors at each.
        compared_window: Side in tokens of the windows that are compared with global attention; null takes the model's
            own, or 16 if it has none.
        held_out_classes: Share of the classes that the out-of-distribution detectors do not know.
        resamples: Draws for the intervals.
        random_seed: Seed of probes, choices and intervals.
    """

    title: ClassVar[str] = "tasks"

    neighbors: int = Field(20, gt=0)
    temperature: float = Field(0.07, gt=0)
    logistic_c: float = Field(1.0, gt=0)
    recall_at: list[int] = Field([1, 5, 10], min_length=1)
    templates: Literal["openai", "simple", "plain"] = "openai"
    zero_shot_sizes_px: list[int] = []
    probe_steps: int = Field(400, gt=0)
    probe_learning_rate: float = Field(3e-3, gt=0)
    probe_warmup_steps: int = Field(0, ge=0)
    probe_schedule: Literal["cosine", "linear"] = "cosine"
    window_px: int | None = Field(None, gt=0)
    radseg: Annotated[list[str] | None, OneOf(RADSEG_STEPS), Spelling(read_names, "A,B|all|none")] = None
    dense_source: Literal["summary_head", "features"] = "summary_head"
    consistency_sizes_px: list[int] = [128, 192, 256, 384, 512]
    switching_sizes_px: list[int] = [128, 256, 512, 1024]
    compared_window: int | None = Field(None, gt=0)
    held_out_classes: float = Field(0.5, gt=0, lt=1)
    resamples: int = Field(1000, ge=100)
    random_seed: int = 0

    @model_validator(mode="after")
    def _check_sizes(self) -> TaskSettings:
        for name in ("consistency_sizes_px", "switching_sizes_px"):
            sizes = getattr(self, name)
            require(len(set(sizes)) > 1 and min(sizes) > 0, name, sizes, "at least two different sizes above 0")
        require(min(self.recall_at) > 0, "recall_at", self.recall_at, "ranks above 0")
        return self


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
        checkpoint: Folder with config.json and weights, or Hub id.
        data: Folder with a sub-folder of images for each class, or `images/` and `masks/` or `depth/`, with or without
            `train/` and `test/` above; `.parquet` or `.tar` files; a data set that `datasets` saved; `hub:ORG/NAME`; or
            demo. By default the data of the recipe.
        recipe: Recipe that names data and teachers, or a file of your own that ends in .yaml.
        tasks: Tasks to measure; by default knn and segmentation_probe, as far as the data allow. The import path of a
            `Task` of your own is one too, "my_package.my_module:MY_TASK".
        preset: Protocol with defaults of other settings; for the demo's images, by default the demo's.
        size: Shorter side of the images in pixels; by default that of the checkpoint's processor.
        output: JSON file for the numbers; earlier results in it are replaced.
        baselines: Baselines in the tables of tasks that have any: the pixels themselves, or a network of the same
            architecture with random weights.
        compare: Other models in the same table: folders of ours, of NVIDIA's layout, of transformers or timm;
            `ORG/NAME` of the Hub; `timm:NAME`; `teacher:KIND` or `teacher:KIND:SOURCE`.
        report: Whether to write a page of the numbers with images, one HTML file, beside `output`.
        cache: Folder of extracted features, so that a stopped run goes on and later runs are faster; by default
            `evaluation` in the cache folder (`RADIO_CACHE`).
        batch_size: Images for each pass.
        num_workers: Processes that decode images if there are many.
        precision: Number format in which the checkpoint computes.
    """

    checkpoint: Path
    data: str | None = None
    tasks: Annotated[list[str] | None, OneOf((*TASK_NAMES, RETRIEVAL), imports=True)] = Field(None, min_length=1)
    preset: Annotated[str | None, OneOf(PRESETS)] = None
    size: int | None = Field(None, gt=0)
    output: Path | None = None
    baselines: list[Literal["pixels", "random"]] = ["pixels"]
    compare: list[str] = []
    report: bool = True
    cache: Path | None = None
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
