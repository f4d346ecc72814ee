"""Recipes: everything that decides a distillation run, as strict dataclasses read from YAML.

A recipe file may start from another one with `base: NAME`; `section.field=value` on the command line changes
it further (`teachers.NAME.field=value` for an entry of a list). A key that does not exist is an error that
suggests the right one.
"""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from foundation.seeds import derive_seed


RECIPES_DIR = Path(__file__).parent / "recipes"

INDECISIVE_SECTIONS = ("name", "checkpoints", "logging")
INDECISIVE_FIELDS = {
    "student": ("gradient_checkpointing", "compile"),
    "teachers": ("device", "compile"),
    "data": ("num_workers",),
    "views": ("cache_dir",),
    "partitions": ("accumulation_steps", "rank_share"),
}
"""What may change between two sessions of a run: it moves the weights by no more than rounding."""


STAGELESS_KEYS = ("stages", "mixed_precision", "student.init_from")
"""What a stage cannot change: Accelerate has one precision per process, and a stage starts from the one before."""


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line that says what to change."""


@dataclass
class StudentRecipe:
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
        init_from: Folder or Hub id of a checkpoint, ours or NVIDIA's, to start from: its trunk, and heads and class
            tokens of the teachers that it shares with the recipe; None for fresh weights.
    """

    preset: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    adaptor: dict[str, Any] = field(default_factory=dict)
    positions: str = "normal"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    compile: bool = False
    init_from: str | None = None

    def __post_init__(self) -> None:
        _require(self.positions in ("normal", "sincos"), "student.positions", self.positions, "'normal' or 'sincos'")


@dataclass
class TeacherRecipe:
    """One frozen teacher.

    Attributes:
        name: The adaptor's name: the same string in config, checkpoint keys and logs.
        kind: One of `training.teachers.registry`, or the import path of a class, "my_package.my_module:MyTeacher".
        source: Hub id or folder; None where the kind knows its own.
        options: Further arguments of that kind, for example which layer.
        run_mode: "native" (at the student's size), "fixed" (at one size, features resampled) or "mosaic" (at one size,
            many images in a pass); None for the kind's default.
        input_size_px: Side of the square that it sees in the modes "fixed" and "mosaic"; None for its native size.
        upsample: How the mode "fixed" comes by a grid finer than the teacher's own: "bilinear", or "tiles" (in place of
            FeatSharp).
        precision: "float32", or "bfloat16" for autocast.
        device: Where it runs, for example "cuda:1"; None for the student's device.
        compile: Compile its network with `torch.compile`.
        feature_weight: Factor of its dense loss.
        summary_weight: Factor of its summary loss, where it has a summary.
        adaptor: Fields of `RadioAdaptorConfig` for this adaptor, for example `hidden_size`.
    """

    name: str = MISSING
    kind: str = MISSING
    source: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    run_mode: str | None = None
    input_size_px: int | None = None
    upsample: str = "bilinear"
    precision: str = "float32"
    device: str | None = None
    compile: bool = False
    feature_weight: float = 1.0
    summary_weight: float = 1.0
    adaptor: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"teachers.{self.name}"
        fields = [entry.name for entry in dataclasses.fields(self)]
        for key in self.options:
            _require(key not in fields, f"{where}.options.{key}", "set", f"written one level up, as {where}.{key}")
        if self.run_mode is not None:
            _require_choice(f"{where}.run_mode", self.run_mode, ("native", "fixed", "mosaic"))
        _require_choice(f"{where}.upsample", self.upsample, ("bilinear", "tiles"))
        _require_choice(f"{where}.precision", self.precision, ("float32", "bfloat16"))


@dataclass
class SourceRecipe:
    """One source of images.

    Attributes:
        source: "demo" or "demo-pypi"; a folder of images, of Parquet files or of webdataset shards; a pattern of
            `.parquet` or `.tar` files, also with `{000..123}`; or a data set of the Hub: `org/name`, or `hub:org/name`
            where a folder has that name, with `:config` where it has several.
        weight: Share of the images that come from here.
        split: Of a Hub data set; None for "train".
        column: That holds the images; None finds it.
    """

    source: str = MISSING
    weight: float = MISSING
    split: str | None = None
    column: str | None = None


@dataclass
class DataRecipe:
    """The unlabeled training images.

    Attributes:
        source: As in `SourceRecipe`.
        split: As in `SourceRecipe`.
        column: As in `SourceRecipe`.
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

    source: str = MISSING
    split: str | None = None
    column: str | None = None
    mixed_in: list[SourceRecipe] = field(default_factory=list)
    streaming: bool = False
    shuffle_buffer: int = 1000
    num_images: int | None = None
    image_size_px: int = 224
    seed: int = 0
    num_workers: int = 2

    def __post_init__(self) -> None:
        _require(self.num_images is None or self.num_images > 0, "data.num_images", self.num_images, "above 0")
        _require(self.image_size_px > 0, "data.image_size_px", self.image_size_px, "above 0")
        _require(self.shuffle_buffer > 0, "data.shuffle_buffer", self.shuffle_buffer, "above 0")
        _require(self.num_workers >= 0, "data.num_workers", self.num_workers, "0 or more")
        is_free = self.num_images is None or not (self.streaming or self.mixed_in)
        _require(is_free, "data.num_images", self.num_images, "null with `data.streaming` or `data.mixed_in`")
        weights = [entry.weight for entry in self.mixed_in]
        is_share = all(weight > 0 for weight in weights) and sum(weights) < 1
        _require(is_share, "data.mixed_in (weights)", weights, "above 0 and sum to less than 1")

    def sources(self) -> list[SourceRecipe]:
        """Return all sources; their weights sum to 1."""
        rest = 1 - sum(entry.weight for entry in self.mixed_in)
        return [SourceRecipe(self.source, rest, self.split, self.column), *self.mixed_in]


@dataclass
class ViewsRecipe:
    """What the student and each teacher see of an image.

    Attributes:
        teachers: "online" runs the teachers at every step, each on its own shifted crop; "cached" runs them
            once on every whole image and gives the student windows and flips of it, targets being exact crops
            of the result.
        cache_dir: Where cached features lie; None for a folder of the recipe's own under `runs/cache`.
        crop_scale: Smallest and largest share of the image's area that an online view shows.
        crop_aspect: Smallest and largest width over height of the area that an online view shows.
        max_shift_patches: Largest shift of an online crop from the middle of the view, per axis.
        shift_deviation_patches: Standard deviation of these shifts before rounding to whole patches.
        flip_probability: Share of images that are mirrored, for the student and the teachers alike.
        brightness: Largest change of the student's pixels, up or down, where 1 is the whole range.
        contrast: Largest relative change of the student's contrast, per color channel.
    """

    teachers: str = "online"
    cache_dir: str | None = None
    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    crop_aspect: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    max_shift_patches: int = 2
    shift_deviation_patches: float = 0.5
    flip_probability: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("views.teachers", self.teachers, ("online", "cached"))
        for name, bounds in (("crop_scale", self.crop_scale), ("crop_aspect", self.crop_aspect)):
            is_range = len(bounds) == 2 and 0 < bounds[0] <= bounds[1]
            _require(is_range, f"views.{name}", bounds, "two numbers above 0, the smaller first")


@dataclass
class PartitionRecipe:
    """Images that are trained together at one resolution per step. A step goes through all partitions.

    Attributes:
        name: For logs and random streams, for example "low".
        sizes_px: Student resolutions; each step draws one.
        probabilities: Their probabilities; None for equal ones.
        batch_size: Images per step, over all ranks and accumulated parts, which get equal numbers of them up to one.
        accumulation_steps: Parts that a rank's share is computed in, to save memory.
        rank_share: Binds the partition to a group of ranks: those with a share divide all ranks among them, in order
            and in proportion, for example 3 for "low" and 1 for "high"; a single process runs all. None runs on
            every rank. The gradient is the same either way.
        teachers: Names of the teachers that see this partition; None for all.
        windows_px: With cached teachers, sides of the window that is resized to the student's resolution,
            each step drawing one; None for the resolution itself, without resizing.
        vitdet_windows: Sides in tokens of ViTDet windows, one drawn for an augmented step (AM-RADIO, appendix C);
            None trains with global attention only.
        vitdet_probability: Share of the steps that are augmented so.
    """

    name: str = "low"
    sizes_px: list[int] = field(default_factory=lambda: [128])
    probabilities: list[float] | None = None
    batch_size: int = 64
    accumulation_steps: int = 1
    rank_share: int | None = None
    teachers: list[str] | None = None
    windows_px: list[int] | None = None
    vitdet_windows: list[int] | None = None
    vitdet_probability: float = 0.5

    def __post_init__(self) -> None:
        where = f"partitions.{self.name}"
        _require(bool(self.sizes_px), f"{where}.sizes_px", self.sizes_px, "at least one size")
        _require(self.batch_size > 0, f"{where}.batch_size", self.batch_size, "above 0")
        _require(self.accumulation_steps > 0, f"{where}.accumulation_steps", self.accumulation_steps, "above 0")
        is_share = self.rank_share is None or self.rank_share > 0
        _require(is_share, f"{where}.rank_share", self.rank_share, "above 0, or null")
        _require(
            self.vitdet_windows is None or (bool(self.vitdet_windows) and min(self.vitdet_windows) >= 1),
            f"{where}.vitdet_windows",
            self.vitdet_windows,
            "at least one size of at least 1 token, or null",
        )
        if self.probabilities is not None:
            is_match = len(self.probabilities) == len(self.sizes_px) and min(self.probabilities) >= 0
            is_match = is_match and sum(self.probabilities) > 0
            rule = "one number >= 0 for each of sizes_px, not all 0"
            _require(is_match, f"{where}.probabilities", self.probabilities, rule)


@dataclass
class StandardizationRecipe:
    """How dense targets are standardized, and when their statistics settle (dispersions too).

    Attributes:
        method: A key of `training.targets.phi_s.STANDARDIZERS`.
        calibration_steps: Batches of teacher features looked at before the first step.
        estimation_steps: Steps during which the statistics go on; then they are frozen.
        refit_every_steps: Steps between two refits meanwhile (early on also at powers of two).
    """

    method: str = "phi_s"
    calibration_steps: int = 1
    estimation_steps: int = 3000
    refit_every_steps: int = 100

    def __post_init__(self) -> None:
        _require(self.calibration_steps > 0, "standardization.calibration_steps", self.calibration_steps, "above 0")
        _require(self.refit_every_steps > 0, "standardization.refit_every_steps", self.refit_every_steps, "above 0")


@dataclass
class LossRecipe:
    """Which losses; the teachers' entries hold the weights.

    Attributes:
        features: A key of `training.losses.features.FEATURE_LOSSES`.
        summary: A key of `training.losses.features.SUMMARY_LOSSES`.
    """

    features: str = "mse"
    summary: str = "balanced"


@dataclass
class OptimizerRecipe:
    """The optimizer and what guards it.

    Attributes:
        name: A key of `training.distillation.optimizers.OPTIMIZERS`.
        learning_rate: Peak of the schedule.
        weight_decay: For matrices; never for biases, norms, the position table and the prefix tokens.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        fallback_lr_scale: Muon only: learning rate of everything outside of the blocks' matrices, which AdamW moves,
            as a factor of `learning_rate`.
        clip_norm: Largest gradient norm; None for no clipping.
        trunk_frozen_steps: Steps during which only the adaptors learn.
        max_bad_steps: Consecutive steps with a non-finite gradient, each skipped, after which the run gives
            up.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    fallback_lr_scale: float = 1.0
    clip_norm: float | None = 1.0
    trunk_frozen_steps: int = 0
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        _require(len(self.betas) == 2, "optimizer.betas", self.betas, "two numbers")


@dataclass
class ScheduleRecipe:
    """Length of the run and the course of the learning rate: linear warm-up, then a cosine.

    Attributes:
        num_steps: Optimiser steps.
        warmup_steps: Steps of the linear rise.
        final_fraction: Learning rate at the end over its peak.
    """

    num_steps: int = 10_000
    warmup_steps: int = 500
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require(self.num_steps > 0, "schedule.num_steps", self.num_steps, "above 0")


@dataclass
class EmaRecipe:
    """The moving average of the student.

    Attributes:
        decay: Its final decay.
        is_exported: Export the average rather than the student itself.
    """

    decay: float = 0.999
    is_exported: bool = True

    def __post_init__(self) -> None:
        _require(0 <= self.decay < 1, "ema.decay", self.decay, "in [0, 1)")


@dataclass
class MesaRecipe:
    """The student's distance to its moving average on another crop of the same image (C-RADIOv4 2.3.2).

    Attributes:
        weight: Factor of the loss; 0 for none.
        start_step: Step from which it counts; before, the average is not run.
    """

    weight: float = 0.0
    start_step: int = 0

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "mesa.weight", self.weight, "at least 0")

    def is_due(self, step: int) -> bool:
        """Return whether the loss counts at a step."""
        return self.weight > 0 and step >= self.start_step


@dataclass
class DampRecipe:
    """Multiplicative noise on the student's weights in training (C-RADIOv4 2.4).

    Attributes:
        sigma: Standard deviation of the factors around 1; 0 for none.
        is_shared: One draw for all ranks and accumulated parts of a partition's step, so that splitting a batch changes
            nothing; otherwise each draws its own, as published.
    """

    sigma: float = 0.0
    is_shared: bool = False

    def __post_init__(self) -> None:
        _require(self.sigma >= 0, "damp.sigma", self.sigma, "at least 0")


@dataclass
class SpectralRecipe:
    """Spectral reparametrization of the blocks' linear layers (PHI-S, A.7).

    Attributes:
        is_used: Whether the student is trained so; what is exported is plain in any case.
    """

    is_used: bool = False


@dataclass
class CheckpointsRecipe:
    """When to save and how many to keep. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two checkpoints; the last step always writes one.
        keep: Newest checkpoints that stay.
    """

    every_steps: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.every_steps > 0, "checkpoints.every_steps", self.every_steps, "above 0")
        _require(self.keep > 0, "checkpoints.keep", self.keep, "above 0")


@dataclass
class LoggingRecipe:
    """What can be watched. Not part of what a resumed run must have in common.

    Attributes:
        every_steps: Steps between two records.
        trackers: Names of Accelerate's trackers, for example `[tensorboard]`.
        use_progress_bar: Show a progress bar on the terminal.
        picture_every_steps: Steps between two pictures of held-out images; None draws none.
        picture_source: Where these images come from: "demo" or "demo-pypi", or a folder of images, whose held-out part
            is shown; None for `data.source`, if it is one of these.
    """

    every_steps: int = 20
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    use_progress_bar: bool = True
    picture_every_steps: int | None = 1000
    picture_source: str | None = None

    def __post_init__(self) -> None:
        _require(self.every_steps > 0, "logging.every_steps", self.every_steps, "above 0")
        is_valid = self.picture_every_steps is None or self.picture_every_steps > 0
        _require(is_valid, "logging.picture_every_steps", self.picture_every_steps, "above 0, or null for none")


@dataclass
class Recipe:
    """A complete distillation run.

    Attributes:
        name: Of the run; the output folder by default is `runs/NAME`.
        seed: Decides everything that is random, apart from `data.seed`.
        mixed_precision: "no" or "bf16", as in Accelerate. Losses and statistics stay in float32 and float64.
        student: The network.
        teachers: At least one; the order decides which class token belongs to whom.
        data: The images.
        views: What is seen of them.
        partitions: Resolutions and batch sizes.
        standardization: Of the dense targets.
        loss: Which losses.
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

    name: str = MISSING
    seed: int = 0
    mixed_precision: str = "bf16"
    student: StudentRecipe = field(default_factory=StudentRecipe)
    teachers: list[TeacherRecipe] = field(default_factory=list)
    data: DataRecipe = field(default_factory=DataRecipe)
    views: ViewsRecipe = field(default_factory=ViewsRecipe)
    partitions: list[PartitionRecipe] = field(default_factory=lambda: [PartitionRecipe()])
    standardization: StandardizationRecipe = field(default_factory=StandardizationRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    ema: EmaRecipe = field(default_factory=EmaRecipe)
    mesa: MesaRecipe = field(default_factory=MesaRecipe)
    damp: DampRecipe = field(default_factory=DampRecipe)
    spectral: SpectralRecipe = field(default_factory=SpectralRecipe)
    stages: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: CheckpointsRecipe = field(default_factory=CheckpointsRecipe)
    logging: LoggingRecipe = field(default_factory=LoggingRecipe)

    def __post_init__(self) -> None:
        if self.mixed_precision == "False":
            self.mixed_precision = "no"  # YAML reads a bare `no` as false
        _require_choice("mixed_precision", self.mixed_precision, ("no", "bf16"))
        for section, entries in (("teachers", self.teachers), ("partitions", self.partitions)):
            names = [entry.name for entry in entries]
            is_valid = bool(names) and len(set(names)) == len(names)
            _require(is_valid, f"{section} (names)", names, "at least one, all different")
        self._check_teachers_of_partitions()
        can_cache = not (self.data.streaming and self.views.teachers == "cached")
        rule = "false with `views.teachers: cached`, which needs images by number (or set `views.teachers: online`)"
        _require(can_cache, "data.streaming", self.data.streaming, rule)

    def _check_teachers_of_partitions(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        seen: set[str] = set()
        for partition in self.partitions:
            own = names if partition.teachers is None else partition.teachers
            for name in own:
                _require_choice(f"partitions.{partition.name}.teachers", name, names)
            _require(bool(own), f"partitions.{partition.name}.teachers", own, "at least one name, or null for all")
            seen.update(own)
        unseen = [name for name in names if name not in seen]
        _require(not unseen, "partitions (teachers)", f"none with {unseen}", "such that each teacher sees one")

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as plain data for YAML or JSON."""
        return dataclasses.asdict(self)

    def fingerprint(self) -> str:
        """Return a hash of `decisive_part`."""
        return hash_of(decisive_part(self.to_dict()))


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
    try:
        config = OmegaConf.structured(Recipe)
        config.name = path.stem
        config = cast(DictConfig, OmegaConf.merge(config, *_read_layers(path)))
        for override in overrides:
            _apply_override(config, override)
        recipe = cast(Recipe, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise RecipeError(f"Recipe {source!r}: {_explain(error)}") from error
    stage_recipes(recipe)  # a mistake in the last stage must not show after days
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
    _require(is_valid and len(set(names)) == len(names), "stages (names)", names, rule)
    return [_stage_recipe(recipe, stage) for stage in recipe.stages]


def _stage_recipe(recipe: Recipe, stage: dict[str, Any]) -> Recipe:
    where = f"stages.{stage['name']}"
    for key in STAGELESS_KEYS:
        is_used = OmegaConf.select(OmegaConf.create(stage), key) is not None
        _require(not is_used, f"{where}.{key}", "set", "left to the recipe itself: it is the same for all stages")
    own = {"stages": [], "seed": derive_seed(recipe.seed, "stage", stage["name"])}
    try:
        return cast(Recipe, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(recipe), own, stage)))
    except OmegaConfBaseException as error:
        raise RecipeError(f"`{where}`: {_explain(error)}") from error
    except RecipeError as error:
        raise RecipeError(f"`{where}`: {error}") from error


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML that `load_recipe` reads back to an equal one."""
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")


def decisive_part(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe without what cannot change the weights (but for rounding)."""
    part = {key: value for key, value in recipe.items() if key not in INDECISIVE_SECTIONS}
    return part | {section: _without(fields, part[section]) for section, fields in INDECISIVE_FIELDS.items()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `"section.field: old -> new"` for every value that two nested dictionaries do not share."""
    old_values, new_values = _flatten(old), _flatten(new)
    keys = [*old_values, *(key for key in new_values if key not in old_values)]
    absent = "(absent)"
    pairs = ((key, old_values.get(key, absent), new_values.get(key, absent)) for key in keys)
    return [f"{key}: {before} -> {after}" for key, before, after in pairs if before != after]


def hash_of(values: dict[str, Any]) -> str:
    """Return a SHA-256 of plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Return `" Did you mean ...?"`, or nothing if no choice is near."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


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


def _read_layers(path: Path) -> list[DictConfig]:
    """Return the file's contents, those of its `base` before it."""
    try:
        layer = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise RecipeError(f"Recipe file {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layer, DictConfig):
        raise RecipeError(f"Recipe file {str(path)!r} must hold a mapping of sections.")
    base = layer.pop("base", None)
    return [layer] if base is None else [*_read_layers(_find_recipe(base)), layer]


def _apply_override(config: DictConfig, override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"Override {override!r} must have the form section.field=value.")
    parsed = OmegaConf.from_dotlist([f"value={value}"])["value"]
    OmegaConf.update(config, _numbered(config, key), parsed)


def _numbered(config: DictConfig, key: str) -> str:
    """Return the key with names of list entries replaced by their places: `teachers.sam3.kind` to `teachers.2.kind`."""
    section, separator, rest = key.partition(".")
    entries = OmegaConf.select(config, section) if section in config else None
    if not separator or not isinstance(entries, ListConfig):
        return key
    name, _, rest = rest.partition(".")
    names = [entry["name"] for entry in entries]
    if name in names:
        name = str(names.index(name))
    elif not name.isdigit() or int(name) >= len(names):
        raise RecipeError(f"Unknown entry {name!r} of {section!r}.{did_you_mean(name, names)} Entries: {names}.")
    return ".".join(part for part in (section, name, rest) if part)


def _explain(error: OmegaConfBaseException) -> str:
    """Return OmegaConf's complaint as one line with the key and, where a name is unknown, the nearest valid one."""
    if isinstance(error, MissingMandatoryValue):
        return f"`{error.full_key}` has no value: add {error.full_key}=... to the command or to the file."
    message = str(error.msg or error).splitlines()[0]
    section = error.object_type
    if section is not None and dataclasses.is_dataclass(section):
        valid = [entry.name for entry in dataclasses.fields(section)]
        if str(error.key) not in valid:
            near = did_you_mean(str(error.key), valid)
            return f"unknown key {error.full_key!r} ({section.__name__}).{near} Valid: {valid}."
    return f"{error.full_key}: {message}"


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, list) and values and all(isinstance(entry, dict) and "name" in entry for entry in values):
        values = {entry["name"]: entry for entry in values}
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _without(keys: Sequence[str], values: Any) -> Any:
    """Return a section, or each of a list of them, without some of its keys."""
    if isinstance(values, list):
        return [_without(keys, entry) for entry in values]
    return {key: value for key, value in values.items() if key not in keys}


def _require(is_valid: bool, name: str, value: Any, rule: str) -> None:
    if not is_valid:
        raise RecipeError(f"`{name}` must be {rule}; got {value}.")


def _require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RecipeError(f"`{name}` must be one of {list(choices)}; got {value!r}.{did_you_mean(value, choices)}")
