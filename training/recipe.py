"""Recipes: everything that decides a distillation run, as typed settings read from YAML.

A recipe file may start from another one with `base: NAME`; `section.field=value` on the command line changes
it further (`teachers.NAME.field=value` for an entry of a list). A key that does not exist is an error that
suggests the right one.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, get_args

import yaml
from annotated_types import Ge, Gt, Lt
from pydantic import BeforeValidator, Field, Strict, model_validator
from torch import nn

from foundation.errors import check_choice, did_you_mean
from foundation.fields import Mark, OneOf, read_yaml
from foundation.seeds import derive_seed
from foundation.settings import Settings, load, marked, merged, require, without
from training.losses.features import FEATURE_LOSSES
from training.losses.reductions import REDUCTIONS
from training.losses.summaries import SUMMARY_LOSSES
from training.recipe_sections.base import RecipeError, RecipeSection
from training.recipe_sections.teaching import (
    TAP_SCHEMES,
    BalancingRecipe,
    BalancingTimes,
    ContrastiveRecipe,
    Role,
    TapsRecipe,
)


RECIPES_DIR = Path(__file__).parent / "recipes"

Count = Annotated[int, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]
LossWeights = dict[str, Annotated[float, Gt(0), Strict()]]

DEFAULT_BATCH_SIZE = 64

INDECISIVE = Mark("may change between two sessions of a run: it moves the weights by no more than rounding")
STAGELESS = Mark("is the same for all stages")


class Named(RecipeSection):
    """Base of the entries of a list, which changes find by their name."""

    name: str


class StudentRecipe(RecipeSection):
    """The student network. Its adaptors and class tokens follow from the teachers.

    Attributes:
        preset: Name of a `RadioConfig` preset to start from; None for the config's defaults.
        config: Fields of `RadioConfig` that differ from it.
        adaptor: Fields of `RadioAdaptorConfig` for every teacher's adaptor; a teacher's own `adaptor` wins.
        positions: How the position table starts: "normal" (random, as published) or "sincos" (two-dimensional sines,
            which a short run learns from much faster).
        attention: Implementation of transformers in training, for example "sdpa" or "eager"; small bfloat16 batches on
            a CPU are faster with "eager".
        gradient_checkpointing: Keep only each block's input for the backward pass and compute the rest again: about a
            third more time for a fraction of the memory.
        compile: Compile every block with `torch.compile`.
        passes_at_once: Accumulated parts of a step that run at the same time on the cores of a CPU, in one process and
            without noise or dropout; elsewhere they run one after the other.
        init_from: Folder or Hub id of a checkpoint, ours or NVIDIA's, to start from: its trunk, and heads and class
            tokens of the teachers that it shares with the recipe; None for fresh weights.
    """

    preset: str | None = None
    config: dict[str, Any] = {}
    adaptor: dict[str, Any] = {}
    positions: Literal["normal", "sincos"] = "normal"
    attention: str = "sdpa"
    gradient_checkpointing: Annotated[bool, INDECISIVE] = False
    compile: Annotated[bool, INDECISIVE] = False
    passes_at_once: Annotated[int, INDECISIVE] = Field(1, gt=0)
    init_from: Annotated[str | None, STAGELESS] = None


RunMode = Literal["native", "fixed", "mosaic"]
Precision = Literal["float32", "bfloat16"]


class RunOptions(RecipeSection):
    """How a teacher runs; `training.teachers.base.Teacher` acts on it.

    Attributes:
        run_mode: "native" (at the student's size), "fixed" (at one size, features resampled) or "mosaic" (at one size,
            many images in a pass); None for the kind's default, or "fixed" where a size is given.
        input_size_px: Side of the square that it sees in the modes "fixed" and "mosaic"; None for its native size.
        upsample: How the mode "fixed" comes by a grid finer than the teacher's own: "bilinear", "tiles" (adds their
            detail, untrained), or "featsharp" (by a network that `training.train_upsampler` made for it).
        upsampler: Folder of that network.
        precision: "float32", or "bfloat16" for autocast; answers are float32 either way.
    """

    run_mode: RunMode | None = None
    input_size_px: int | None = Field(None, gt=0)
    upsample: Literal["bilinear", "tiles", "featsharp"] = "bilinear"
    upsampler: str | None = None
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _check_upsampler(self) -> "RunOptions":
        rule = "a folder that training.train_upsampler wrote with `upsample` 'featsharp', and null without"
        require((self.upsample == "featsharp") == bool(self.upsampler), "upsampler", self.upsampler, rule)
        return self


class TeacherRecipe(RunOptions, Named):
    """One frozen teacher.

    Attributes:
        name: The adaptor's name: the same string in config, checkpoint keys and logs.
        kind: Registered kind of `training.teachers`, or the import path of a class, "my_package.my_module:MyTeacher".
        source: Hub id or folder; None where the kind knows its own.
        options: Further arguments of that kind, for example which layer.
        device: Where it runs, for example "cuda:1"; None for the student's device.
        compile: Compile its network with `torch.compile`.
        feature_weight: Factor of its dense loss.
        summary_weight: Factor of its summary loss, where it has a summary.
        adaptor: Fields of `RadioAdaptorConfig` for this adaptor, for example `hidden_size`.
        role: What it is learned for, "basic" features, "semantic" ones or those of a "task": decides its prior where
            `balancing.method` is "adaptive", and the depth of its taps (`taps.scheme`); otherwise not used.
    """

    kind: str
    source: str | None = None
    options: dict[str, Any] = {}
    device: Annotated[str | None, INDECISIVE] = None
    compile: Annotated[bool, INDECISIVE] = False
    feature_weight: float = Field(1.0, ge=0)
    summary_weight: float = Field(1.0, ge=0)
    adaptor: dict[str, Any] = {}
    role: Role | None = None

    @model_validator(mode="after")
    def _check(self) -> "TeacherRecipe":
        # PyTorch keeps the heads in a `ModuleDict`, which takes no name of its own attributes and methods.
        is_name = re.fullmatch(r"[\w-]+", self.name) is not None and not hasattr(nn.ModuleDict(), self.name)
        require(is_name, "name", self.name, "of letters, digits, '_' and '-', and no word of PyTorch's such as 'keys'")
        for key in self.options:
            rule = f"written one level up, as teachers.{self.name}.{key}"
            require(key not in type(self).model_fields, f"options.{key}", self.options[key], rule)
        return self

    def run_options(self) -> RunOptions:
        """Return how it runs."""
        return RunOptions(**self.model_dump(include=set(RunOptions.model_fields)))


class ImageSource(RecipeSection):
    """Where images come from.

    Attributes:
        source: "demo" or "demo-pypi"; a folder of images, of Parquet files or of webdataset shards; a pattern of
            `.parquet` or `.tar` files, also with `{000..123}`; or a data set of the Hub: `org/name`, or `hub:org/name`
            where a folder has that name, with `:config` where it has several.
        split: Of a Hub data set; None for "train".
        column: Column that holds the images; None finds it.
    """

    source: str
    split: str | None = None
    column: str | None = None


class SourceRecipe(ImageSource):
    """One of several sources.

    Attributes:
        weight: Share of the images that come from here.
    """

    weight: float = Field(gt=0, le=1)


class DataRecipe(ImageSource):
    """The unlabeled training images.

    Attributes:
        mixed_in: Further sources with their weights; the first one gives the rest of the images.
        streaming: Read Parquet, webdataset and Hub data from the beginning to the end instead of copying them to
            `datasets`' cache first; for what is too large for that.
        shuffle_buffer: Streaming only: images that are shuffled together, in memory.
        num_images: Length of the data set; None for the source's own.
        image_size_px: Side of the demo's images; with cached teacher features of all images, which are square crops
            then and the teachers' view. Otherwise images are taken whole.
        seed: Decides generated images. Apart from `Recipe.seed`, so that several students can share a cache.
        num_workers: Processes that decode images, per rank.
    """

    mixed_in: list[SourceRecipe] = []
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0)
    num_images: int | None = Field(None, gt=0)
    image_size_px: int = Field(224, gt=0)
    seed: int = Field(0, ge=0)
    num_workers: Annotated[int, INDECISIVE] = Field(2, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "DataRecipe":
        is_free = self.num_images is None or not (self.streaming or self.mixed_in)
        require(is_free, "num_images", self.num_images, "null with `data.streaming` or `data.mixed_in`")
        weights = [entry.weight for entry in self.mixed_in]
        require(sum(weights) < 1, "mixed_in (weights)", weights, "numbers with a sum below 1")
        return self

    def sources(self) -> list[SourceRecipe]:
        """Return all sources; their weights sum to 1."""
        rest = 1 - sum(entry.weight for entry in self.mixed_in)
        return [
            SourceRecipe(source=self.source, weight=rest, split=self.split, column=self.column),
            *self.mixed_in,
        ]


class ViewsRecipe(RecipeSection):
    """What the student and each teacher see of an image.

    Attributes:
        teachers: "online" runs the teachers at every step, each on its own shifted crop; "cached" runs them
            once on every whole image and gives the student windows and flips of it, targets being exact crops
            of the result.
        cache_dir: Where cached features lie; None for a folder of the recipe's own under `runs/cache`.
        crop_scale: Smallest and largest share of the image's area that an online view shows.
        crop_aspect: Smallest and largest width over height of what a view shows; cached ones only where they keep it.
        is_square: Whether views become squares, whatever their aspect ratio; false keeps it, at as many patches as a
            square of the size has, up to rounding.
        parts_at_once: Accumulated parts of a step that online teachers answer in one pass: fewer and fuller passes, of
            mosaics most of all, for the memory of their targets.
        max_shift_patches: Largest shift of an online crop from the region that all viewers share, per axis.
        shift_deviation_patches: Standard deviation of these shifts before rounding to whole patches.
        flip_probability: Share of images that are mirrored, for the student and the teachers alike.
        brightness: Largest change of the student's pixels, up or down, where 1 is the whole range.
        contrast: Largest relative change of the student's contrast, per color channel.
    """

    teachers: Literal["online", "cached"] = "online"
    cache_dir: Annotated[str | None, INDECISIVE] = None
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    is_square: bool = True
    parts_at_once: int = Field(1, gt=0)
    max_shift_patches: int = Field(2, ge=0)
    shift_deviation_patches: float = Field(0.5, ge=0)
    flip_probability: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "ViewsRecipe":
        for name, bounds in (("crop_scale", self.crop_scale), ("crop_aspect", self.crop_aspect)):
            require(0 < bounds[0] <= bounds[1], name, bounds, "two numbers above 0, the smaller first")
        require(self.crop_scale[1] <= 1, "crop_scale", self.crop_scale, "two shares of the area, at most 1")
        return self


class PartitionRecipe(Named):
    """Images that are trained together, at one resolution per step or with a token budget. A step goes through all.

    Attributes:
        name: For logs and random streams, for example "low".
        sizes_px: Student resolutions; each step draws one, or each image with a token budget.
        probabilities: Their probabilities; None for equal ones.
        batch_size: Images per step, over all ranks and accumulated parts, which get equal numbers of them up to one;
            64 by default, None with a token budget.
        token_budget: In place of a batch size, the most patches of all images of a step, over all ranks and accumulated
            parts. Every image draws a resolution of its own, images follow each other until the next does not fit, and
            each part gets about equally many patches, packed into one sequence.
        accumulation_steps: Parts that a rank's share is computed in, to save memory.
        rank_share: Binds the partition to a group of ranks: those with a share divide all ranks among them, in order
            and in proportion, for example 3 for "low" and 1 for "high"; a single process runs all. None runs on
            every rank. The gradient is the same either way.
        weight: Factor of its mean loss. By default every partition counts alike, however many images it has, as do
            the arms of NVIDIA's TAO toolkit; where every image shall count alike, give each its images per step over
            those of the largest.
        teachers: Names of the teachers that see this partition; None for all.
        windows_px: With cached teachers, sides of the window that is resized to the student's resolution,
            each step drawing one; None for the resolution itself, without resizing.
        vitdet_windows: Sides in tokens of ViTDet windows; an augmented step draws one of those that are smaller than
            its grid of patches (AM-RADIO, appendix C), with a token budget than that of the middle one of its images.
            None trains with global attention only.
        vitdet_ragged: Also draw windows that do not divide the grid, whose windows at the right and lower edge are
            smaller. By default only those that do, as in AM-RADIO and NVIDIA's TAO toolkit.
        vitdet_probability: Share of the steps that are augmented so.
    """

    name: str = "low"
    sizes_px: list[Count] = [128]
    probabilities: list[Annotated[float, Ge(0)]] | None = None
    batch_size: int | None = Field(None, gt=0)
    token_budget: int | None = Field(None, gt=0)
    accumulation_steps: Annotated[int, INDECISIVE] = Field(1, gt=0)
    rank_share: Annotated[int | None, INDECISIVE] = Field(None, gt=0)
    weight: float = Field(1.0, gt=0)
    teachers: list[str] | None = None
    windows_px: list[Count] | None = None
    vitdet_windows: list[Count] | None = None
    vitdet_ragged: bool = False
    vitdet_probability: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _default_batch(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {"batch_size": DEFAULT_BATCH_SIZE if values.get("token_budget") is None else None, **values}

    @model_validator(mode="after")
    def _check(self) -> "PartitionRecipe":
        require(bool(self.sizes_px), "sizes_px", self.sizes_px, "at least one size")
        is_one = (self.batch_size is None) != (self.token_budget is None)
        rule = "a number, or null where `token_budget` is one" if self.token_budget is None else "null with one"
        require(is_one, "batch_size", self.batch_size, f"{rule} (token_budget is {self.token_budget})")
        for name, windows in (("windows_px", self.windows_px), ("vitdet_windows", self.vitdet_windows)):
            require(windows != [], name, windows, "at least one size, or null")
        if self.probabilities is not None:
            is_match = len(self.probabilities) == len(self.sizes_px) and sum(self.probabilities) > 0
            rule = "one number >= 0 for each of sizes_px, not all 0"
            require(is_match, "probabilities", self.probabilities, rule)
        return self


class StandardizationRecipe(RecipeSection):
    """How dense targets are standardized, and when their statistics settle (dispersions too).

    Attributes:
        method: A key of `training.targets.phi_s.STANDARDIZERS`; "none" takes the mean off alone, to compare with.
        calibration_steps: Batches of teacher features looked at before the first step.
        estimation_steps: Steps during which the statistics go on; then they are frozen.
        refit_every_steps: Steps between two refits meanwhile (early on also at powers of two).
    """

    method: Literal["phi_s", "channel", "global", "none"] = "phi_s"
    calibration_steps: int = Field(1, gt=0)
    estimation_steps: int = Field(3000, ge=0)
    refit_every_steps: int = Field(100, gt=0)


class LossRecipe(RecipeSection):
    """Which losses; the entries of teachers and partitions hold the weights.

    Attributes:
        features: A key of `training.losses.features.FEATURE_LOSSES`; for several at once a mapping of keys to weights,
            for example `{mse: 1.0, gram: 0.1}`.
        summary: A key of `training.losses.summaries.SUMMARY_LOSSES`, or such a mapping.
        reduction: What an image's dense loss counts by in its partition: "images" (all alike), "tokens" (valid tokens,
            those that student and teacher both see) or "sqrt_tokens" (the square root of their number). "images", the
            default, is C-RADIOv4's Eq 1: an image counts once, as its summary does, however little of it is shared.
            MESA's is by images.
    """

    features: Annotated[str | LossWeights, OneOf(FEATURE_LOSSES)] = "mse"
    summary: Annotated[str | LossWeights, OneOf(SUMMARY_LOSSES)] = "balanced"
    reduction: Annotated[str, OneOf(REDUCTIONS)] = "images"

    @model_validator(mode="after")
    def _check(self) -> "LossRecipe":
        for name, chosen in (("features", self.features), ("summary", self.summary)):
            require(chosen != {}, name, chosen, "a loss, or a mapping of at least one to its weight")
        return self


class OptimizerRecipe(RecipeSection):
    """The optimizer and what guards it.

    Attributes:
        name: A key of `training.distillation.optimizers.registry.OPTIMIZERS`.
        learning_rate: Peak of the schedule.
        weight_decay: For matrices; never for biases, norms, the position table and the prefix tokens.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        fallback_lr_scale: Muon only: learning rate of everything outside of the blocks' matrices, which NAdamW moves,
            as a factor of `learning_rate`.
        clip_norm: Largest gradient norm; None for no clipping.
        trunk_frozen_steps: Steps during which only the adaptors learn; the trunk is not even run backward.
        trunk_warmup_steps: Steps over which the learning rate of a trunk that was frozen rises once it wakes, as a
            factor on the schedule's; None for `schedule.warmup_steps`.
        max_bad_steps: Consecutive steps with a non-finite gradient, each skipped, after which the run gives
            up.
    """

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    fallback_lr_scale: float = Field(1.0, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    trunk_frozen_steps: int = Field(0, ge=0)
    trunk_warmup_steps: int | None = Field(None, ge=0)
    max_bad_steps: int = Field(10, gt=0)


class ScheduleRecipe(RecipeSection):
    """Length of the run and the course of the learning rate: linear warm-up, then a cosine.

    Attributes:
        num_steps: Optimizer steps.
        warmup_steps: Steps of the linear rise.
        final_fraction: Learning rate at the end over its peak.
    """

    num_steps: int = Field(10_000, gt=0)
    warmup_steps: int = Field(500, ge=0)
    final_fraction: float = Field(0.0, ge=0, le=1)


class EmaRecipe(RecipeSection):
    """The moving average of the student.

    Attributes:
        decay: Its final decay.
        is_exported: Export the average rather than the student itself.
    """

    decay: float = Field(0.999, ge=0, lt=1)
    is_exported: bool = True


class MesaRecipe(RecipeSection):
    """The student's distance to its moving average on another crop of the same image (C-RADIOv4 2.3.2).

    Attributes:
        weight: Factor of the loss; 0 for none.
        start_step: Step from which it counts; before, the average is not run.
    """

    weight: float = Field(0.0, ge=0)
    start_step: int = Field(0, ge=0)

    def is_due(self, step: int) -> bool:
        """Return whether the loss counts at a step."""
        return self.weight > 0 and step >= self.start_step


class DampRecipe(RecipeSection):
    """Multiplicative noise on the student's weights in training (C-RADIOv4 2.4).

    Attributes:
        sigma: Standard deviation of the factors around 1; 0 for none.
        is_shared: One draw for all ranks and accumulated parts of a partition's step, so that splitting a batch changes
            nothing; otherwise each draws its own, as published.
    """

    sigma: float = Field(0.0, ge=0)
    is_shared: bool = False


class SpectralRecipe(RecipeSection):
    """Spectral reparametrization of the blocks' linear layers (PHI-S, A.7).

    Attributes:
        is_used: Whether the student is trained so; what is exported is plain in any case.
    """

    is_used: bool = False


class CheckpointsRecipe(RecipeSection):
    """When to save and how many to keep. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two checkpoints; the last step always writes one.
        keep: Newest checkpoints that stay.
    """

    every_steps: int = Field(1000, gt=0)
    keep: int = Field(2, gt=0)


class LoggingRecipe(RecipeSection):
    """What can be watched. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two records.
        trackers: Names of Accelerate's trackers, for example `[tensorboard]`.
        use_progress_bar: Show a progress bar on the terminal.
        picture_every_steps: Steps between two pictures of held-out images; None draws none.
        picture_source: Where these images come from: "demo" or "demo-pypi", or a folder of images, whose held-out part
            is shown; None for `data.source`, if it is one of these.
        metrics_every_steps: Steps between two measurements on held-out images, those of `picture_source`; the last
            step is always measured. None for no measurements.
        metrics_sizes_px: Sides of the images that are measured; None for the smallest, middle and largest of those that
            are trained.
    """

    every_steps: int = Field(20, gt=0)
    trackers: list[str] = ["tensorboard"]
    use_progress_bar: bool = True
    picture_every_steps: int | None = Field(1000, gt=0)
    picture_source: str | None = None
    metrics_every_steps: int | None = Field(200, gt=0)
    metrics_sizes_px: list[Count] | None = None

    @model_validator(mode="after")
    def _check(self) -> "LoggingRecipe":
        sizes = self.metrics_sizes_px
        require(sizes != [], "metrics_sizes_px", sizes, "at least one size, or null")
        return self


class Recipe(RecipeSection):
    """A complete distillation run.

    Attributes:
        name: Of the run; by default the name of the file. The output folder by default is `runs/NAME`.
        seed: Decides everything that is random, apart from `data.seed`.
        mixed_precision: "no" or "bf16", as in Accelerate. Losses and statistics stay in float32 and float64.
        student: The network.
        teachers: At least one; the order decides which class token belongs to whom.
        data: The images.
        views: What is seen of them.
        partitions: Resolutions and batch sizes.
        standardization: Of the dense targets.
        loss: Which losses.
        contrastive: A loss of images, or their cells, among each other.
        balancing: How teachers are weighed against each other while they are learned.
        taps: Losses within the trunk.
        optimizer: The optimizer.
        schedule: Steps and learning rate.
        ema: Moving average.
        mesa: Consistency with the moving average.
        damp: Noise on the weights.
        spectral: Reparametrization of the weights.
        stages: Runs one after the other, each starting from the weights of the one before: `name`, and the sections and
            fields in which it differs from the rest of the recipe, which win over it (on the command line they are
            `stages.NAME.section.field=value`). Empty for a single run.
        checkpoints: When to save.
        logging: What to show.
    """

    name: Annotated[str, INDECISIVE]
    seed: int = Field(0, ge=0)
    # Accelerate has one precision per process. YAML reads a bare `no` as false.
    mixed_precision: Annotated[
        Literal["no", "bf16"], STAGELESS, BeforeValidator(lambda value: "no" if value is False else value)
    ] = "bf16"
    student: StudentRecipe = StudentRecipe()
    teachers: list[TeacherRecipe] = []
    data: DataRecipe
    views: ViewsRecipe = ViewsRecipe()
    partitions: list[PartitionRecipe] = [PartitionRecipe()]
    standardization: StandardizationRecipe = StandardizationRecipe()
    loss: LossRecipe = LossRecipe()
    contrastive: ContrastiveRecipe = ContrastiveRecipe()
    balancing: BalancingRecipe = BalancingRecipe()
    taps: TapsRecipe = TapsRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    ema: EmaRecipe = EmaRecipe()
    mesa: MesaRecipe = MesaRecipe()
    damp: DampRecipe = DampRecipe()
    spectral: SpectralRecipe = SpectralRecipe()
    stages: Annotated[list[dict[str, Any]], STAGELESS] = []
    checkpoints: Annotated[CheckpointsRecipe, INDECISIVE] = CheckpointsRecipe()
    logging: Annotated[LoggingRecipe, INDECISIVE] = LoggingRecipe()

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        is_name = re.fullmatch(r"[^/\0]+", self.name) is not None and self.name not in (".", "..")
        require(is_name, "name", self.name, "the name of a folder below `runs`, without '/'")
        for section, entries in (("teachers", self.teachers), ("partitions", self.partitions)):
            names = [entry.name for entry in entries]
            is_valid = bool(names) and len(set(names)) == len(names)
            require(is_valid, f"{section} (names)", names, "at least one, all different")
        self._check_teachers_of_partitions()
        self._check_taps()
        can_cache = not (self.data.streaming and self.views.teachers == "cached")
        rule = "false with `views.teachers: cached`, which needs images by number (or set `views.teachers: online`)"
        require(can_cache, "data.streaming", self.data.streaming, rule)
        for partition in self.partitions:
            can_window = partition.windows_px is None or self.views.teachers == "cached"
            rule = "null with `views.teachers: online`, whose views are cut by `views.crop_scale`"
            require(can_window, f"partitions.{partition.name}.windows_px", partition.windows_px, rule)
        return self

    def balancing_times(self) -> BalancingTimes:
        """Return when the weights of teachers move; what is not set is a share of the run, of 12 steps as well.

        A hundredth and a tenth of the run are our choice: of 10,000 steps the period is AdaLoss's 100.
        """
        own, num_steps = self.balancing, self.schedule.num_steps
        start = min(max(self.schedule.warmup_steps, self.optimizer.trunk_frozen_steps), num_steps // 4)
        return BalancingTimes(
            start if own.start_step is None else own.start_step,
            max(1, num_steps // 100) if own.period_steps is None else own.period_steps,
            max(1, num_steps // 10) if own.ramp_steps is None else own.ramp_steps,
        )

    def tap_shares(self) -> list[dict[str, float]]:
        """Return for each of `taps.depths` what each teacher counts by at that tap; a scheme is met by roles."""
        scheme = self.taps.chosen_scheme
        if scheme == "all":
            alike = {entry.name: 1 / len(self.teachers) for entry in self.teachers}
            return [alike for _ in self.taps.depths]
        matrix = TAP_SCHEMES[scheme] if isinstance(scheme, str) else scheme
        columns = {entry.name: get_args(Role).index(entry.role) for entry in self.teachers}
        return [{name: row[column] for name, column in columns.items()} for row in matrix]

    def inner_depths(self) -> dict[str, list[float]]:
        """Return by teacher the shares of its own blocks at which taps look, but for the end; empty without such."""
        depths: dict[str, list[float]] = {}
        if self.taps.is_used:
            for depth, shares in zip(self.taps.depths, self.tap_shares(), strict=True):
                if self.taps.target_depth(depth) < 1:
                    for name in (name for name, share in shares.items() if share):
                        depths.setdefault(name, []).append(depth)
        return depths

    def _check_taps(self) -> None:
        scheme = self.taps.chosen_scheme
        if not self.taps.is_used:
            return
        if self.taps.targets == "matching" and self.views.teachers == "cached":
            raise RecipeError(
                "`taps.targets` must be 'last' with `views.teachers: cached`, got 'matching'. A cache holds the last "
                "features only; or set `views.teachers: online`."
            )
        if scheme == "all":
            return
        for entry in self.teachers:
            if entry.role is None:
                raise RecipeError(
                    f"`teachers.{entry.name}.role` must be one of {list(get_args(Role))} with `taps.scheme` "
                    f"{scheme!r}, got None. Say what the teacher is learned for, or choose the scheme 'all'."
                )
        if not any(any(shares.values()) for shares in self.tap_shares()):
            raise RecipeError(
                f"`taps.scheme` must give some teacher a share, got {scheme!r} with the roles "
                f"{[entry.role for entry in self.teachers]}. Raise a number of one of these roles."
            )

    def _check_teachers_of_partitions(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        seen: set[str] = set()
        for partition in self.partitions:
            own = names if partition.teachers is None else partition.teachers
            path = f"partitions.{partition.name}.teachers"
            for name in own:
                check_choice(path, name, names, error=RecipeError)
            require(bool(own), path, own, "at least one name, or null for all")
            seen.update(own)
        unseen = [name for name in names if name not in seen]
        if unseen:
            raise RecipeError(f"`partitions (teachers)` must be such that each teacher sees one, got none of {unseen}.")


class RecipeCommand(Settings):
    """Base of the options of a command that takes a recipe.

    Attributes:
        recipe: Name of a recipe, or a file of your own that ends in .yaml.
        changes: Changes of the recipe, "section.field=value".
    """

    recipe: str = "demo"
    changes: list[str] = []

    def load_recipe(self, *first: str) -> Recipe:
        """Return the recipe with the changes; others may be made before them."""
        return load_recipe(self.recipe, [*first, *self.changes])


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply the command line's changes.

    Args:
        source: Name of a file in `training/recipes` without `.yaml`, or a path ending in `.yaml` or `.yml`.
        overrides: `"section.field=value"` texts, values in YAML.

    Returns:
        The resolved recipe.

    Raises:
        RecipeError: If there is no such recipe, a key is unknown, or a value has the wrong type or is out of
            range.
    """
    path = _find_recipe(source)
    layers = [{"name": path.stem}, *_read_layers([path])]
    try:
        recipe = load(Recipe, layers, overrides)
        stage_recipes(recipe)  # checked now, so that a run does not fail when the stage starts
    except RecipeError as error:
        raise RecipeError(f"Recipe {source!r}: {error}") from error
    return recipe


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """Return a recipe for each stage: the recipe with the stage's changes, its name and a seed of its own.

    Mappings are merged field by field, lists (teachers, partitions) are replaced.

    Args:
        recipe: The recipe; nothing is returned for one without stages.

    Raises:
        RecipeError: If a stage has no name or the same as another, changes what only the whole run has, or has an
            unknown key or a bad value.
    """
    names = [stage.get("name") for stage in recipe.stages]
    is_valid = all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names)
    rule = "all different, of letters, digits and any of '_', '-' and '.'"
    if not is_valid or len(set(names)) < len(names):
        raise RecipeError(f"`stages (names)` must be {rule}, got {names}.")
    return [_stage_recipe(recipe, stage) for stage in recipe.stages]


def _stage_recipe(recipe: Recipe, stage: dict[str, Any]) -> Recipe:
    where = ("stages", stage["name"])
    for path in marked(Recipe, STAGELESS):
        value: Any = stage
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            key = ".".join((*where, *path))
            raise RecipeError(f"`{key}` must be left to the recipe itself, got {value!r}. It {STAGELESS}.")
    own = {"stages": [], "seed": derive_seed(recipe.seed, "stage", stage["name"])}
    try:
        return Recipe(**merged(recipe.to_dict() | own, stage))
    except RecipeError as error:
        raise RecipeError(*error.below(*where)) from error


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")


def decisive_part(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe without what cannot change the weights (but for rounding)."""
    return without(recipe, list(marked(Recipe, INDECISIVE)))


def _find_recipe(source: str) -> Path:
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise RecipeError(f"Recipe file {source!r} does not exist.")
        return path
    if source not in list_recipes():
        raise RecipeError(
            f"Unknown recipe {source!r}.{did_you_mean(source, list_recipes())} Recipes: {', '.join(list_recipes())}; "
            "a file of your own must end in .yaml."
        )
    return RECIPES_DIR / f"{source}.yaml"


def _read_layers(paths: list[Path]) -> list[dict[str, Any]]:
    """Return the contents of the last file, those of its `base` before it; it is the base of the file before it."""
    path = paths[-1]
    try:
        layer = read_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"Recipe file {str(path)!r} is not text in UTF-8: {error.reason}.") from error
    except ValueError as error:
        raise RecipeError(f"Recipe file {str(path)!r} is {error}") from error
    if not isinstance(layer, dict):
        raise RecipeError(f"Recipe file {str(path)!r} must hold a mapping of sections, got {shorten(repr(layer), 80)}.")
    base = layer.pop("base", None)
    if base is None:
        return [layer]
    own_name = f"Recipe file {str(path)!r}: `base`"
    if not isinstance(base, str):
        raise RecipeError(f"{own_name} must be the name of a recipe or a file that ends in .yaml, got {base!r}.")
    try:
        base_path = _find_recipe(base)
    except RecipeError as error:
        raise RecipeError(f"{own_name} {base!r} cannot be read. {error}") from error
    if any(base_path.samefile(each) for each in paths):
        loop = " -> ".join(str(each) for each in (*paths, base_path))
        raise RecipeError(f"{own_name} must be another recipe, got a loop: {loop}.")
    return [*_read_layers([*paths, base_path]), layer]
