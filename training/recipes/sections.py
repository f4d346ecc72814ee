"""The sections of a recipe, as typed settings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Len, Lt
from pydantic import BeforeValidator, Field, model_validator

from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import INDECISIVE, Mark, OneOf, Settings, SettingsError, require


Count = Annotated[int, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]

STAGELESS = Mark("is the same for all stages")
STEPS_OR_SHARE = Mark("is in steps, or below 1 a share of `schedule.num_steps`, of which each stage may have its own")
"""The rule of `warmup_steps` in transformers' `TrainingArguments`; `in_steps` resolves shares."""

_StepCount = Annotated[int, Ge(0)] | Annotated[float, Gt(0), Lt(1)]
Steps = Annotated[_StepCount, STEPS_OR_SHARE]
StepsOrNone = Annotated[_StepCount | None, STEPS_OR_SHARE]


class RecipeError(SettingsError):
    """A recipe that cannot be used; the message is one line that says what to change."""


class RecipeSection(Settings):
    """Base of a recipe and its sections."""

    error_class: ClassVar[type[SettingsError]] = RecipeError


class NamedSection(RecipeSection):
    """Base of the entries of a list, which changes find by their name."""

    name: str


def in_steps(value: Steps, num_steps: int) -> int:
    """Return a number of steps, given as such or, below 1, as a share of a run; rounded to the nearest."""
    return round(value * num_steps) if value < 1 else int(value)


DEFAULT_BATCH_SIZE = 64
AUTO = "auto"
"""Value of settings that follow from the device."""


def require_range(name: str, bounds: tuple[float, float]) -> None:
    """Refuse bounds that are not above 0, or not in order."""
    require(0 < bounds[0] <= bounds[1], name, bounds, "two numbers above 0, the smaller first")


class ViewsRecipe(RecipeSection):
    """Views of an image that the student and each teacher get.

    Attributes:
        teachers: "online" runs the teachers at every step, each on its own shifted crop. "cached" runs them once on
            every whole image; the student then gets windows and flips of it, and its targets are exact crops of the
            result.
        cache_dir: Folder of cached features; None for a folder in the cache (`RADIO_CACHE`) that fits their contents.
        crop_scale: Smallest and largest area of an online view, as shares of the largest view of its shape that fits
            into the image. Above 1 the view reaches beyond the image's edges.
        crop_aspect: Smallest and largest width over height of a view; cached images must be large enough for it.
        is_square: Whether views become squares. False keeps their aspect ratio, with as many patches as a square of the
            size, up to rounding.
        aspect_steps: Number of aspect ratios if they are kept, spread evenly over `crop_aspect`. Fewer shapes make
            fuller batches for teachers and attention. None allows any ratio.
        parts_at_once: Accumulated parts of a step that online teachers process in one pass. More parts make larger
            passes, especially of mosaics, and need memory for their targets.
        max_shift_patches: Largest shift of an online crop from the region that student and teachers share, per axis.
        flip_probability: Share of images that are mirrored, for the student and the teachers alike.
        brightness: Largest change of the student's pixels, up or down; 1 is the whole range.
        contrast: Largest relative change of the student's contrast, per color channel.
    """

    teachers: Literal["online", "cached"] = "online"
    cache_dir: Annotated[str | None, INDECISIVE] = None
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    is_square: bool = True
    aspect_steps: int | None = Field(None, gt=0)
    parts_at_once: Annotated[int, INDECISIVE] = Field(1, gt=0)
    max_shift_patches: int = Field(2, ge=0)
    flip_probability: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "ViewsRecipe":
        require_range("crop_scale", self.crop_scale)
        require_range("crop_aspect", self.crop_aspect)
        return self


class PartitionRecipe(NamedSection):
    """Images that are trained together, at one resolution per step or with a token budget. A step goes through all.

    Attributes:
        name: Name in logs and random streams, such as "low".
        sizes_px: Student resolutions; each step draws one, or each image with a token budget.
        probabilities: Their probabilities; None for equal ones.
        batch_size: Images per step, over all ranks and accumulated parts, which get equal numbers of them up to one,
            or none if there are more parts than images; 64 by default, None with a token budget.
        token_budget: Instead of a batch size, the number of patches of all images of a step, over all ranks and
            accumulated parts, up to the rounding of shapes. A step has as many images as it holds of the mean size,
            each resolution has its share of them, and each part packs its images into one sequence.
        accumulation_steps: Number of parts in which a rank computes its share, to save memory; fewer if a rank has
            fewer images. "auto" takes the fewest that fit into the GPU's memory by the count of `radio plan`, or 1
            without a GPU; the run then keeps them on any device, as long as it has as many ranks.
        rank_share: Gives the partition its own group of ranks. All ranks are divided between such partitions in this
            proportion, for example 3 for "low" and 1 for "high"; a single process runs all partitions. None uses every
            rank. The gradient is the same in all cases.
        weight: Factor of its mean loss. By default all partitions have equal weight, as in NVIDIA's TAO toolkit, with
            any number of images. For equal weight of all images, set it to the partition's images per step divided by
            those of the largest partition.
        teachers: Names of the teachers that see this partition; None for all.
        teachers_per_image: Experimental. Number of these teachers that see each image, as 1 in the first stage of PHI-S
            (table 10), which saves passes of teachers. Each step deals its images to them evenly, and a teacher's loss
            is the mean over its own images. Only with online teachers; None shows each image to all.
        crop_scale: As `views.crop_scale`, for this partition with online teachers; None for that of `views`.
        windows_px: With cached teachers, sides of the window that is resized to the student's resolution,
            each step drawing one; None for the resolution itself, without resizing.
        vitdet_windows: Sides in tokens of ViTDet windows. A step with windows draws a side that is smaller than its
            grid of patches (AM-RADIO, appendix C); with a token budget, smaller than the grid of its median image.
            None only trains with global attention.
        vitdet_ragged: Also draw windows that do not divide the grid; then windows at the right and lower edge are
            smaller. By default only windows that divide it, as in AM-RADIO and NVIDIA's TAO toolkit.
        vitdet_probability: Share of the steps with windows.
    """

    name: str = "low"
    sizes_px: list[Count] = [128]
    probabilities: list[Annotated[float, Ge(0)]] | None = None
    batch_size: int | None = Field(None, gt=0)
    token_budget: int | None = Field(None, gt=0)
    accumulation_steps: Annotated[Count | Literal["auto"], INDECISIVE] = 1
    rank_share: Annotated[int | None, INDECISIVE] = Field(None, gt=0)
    weight: float = Field(1.0, gt=0)
    teachers: list[str] | None = None
    teachers_per_image: int | None = Field(None, gt=0)
    crop_scale: tuple[float, float] | None = None
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
        rule = f"null with a `token_budget`, here {self.token_budget}, or set that to null"
        rule = "a number, or null where `token_budget` is one" if self.token_budget is None else rule
        require(is_one, "batch_size", self.batch_size, rule)
        if self.crop_scale is not None:
            require_range("crop_scale", self.crop_scale)
        for name, windows in (("windows_px", self.windows_px), ("vitdet_windows", self.vitdet_windows)):
            require(windows != [], name, windows, "at least one size, or null")
        if self.probabilities is not None:
            is_match = len(self.probabilities) == len(self.sizes_px) and sum(self.probabilities) > 0
            rule = "one number >= 0 for each of sizes_px, not all 0"
            require(is_match, "probabilities", self.probabilities, rule)
        return self


Role = Literal["basic", "semantic", "task"]
"""Purposes of teachers, in the order in which the trunk is to learn them."""


class BalancingRecipe(RecipeSection):
    """Weights of the teachers' losses that change during the run. Our own addition; C-RADIOv4 has none.

    Times that are not set follow from `schedule.num_steps`: see `Recipe.balancing_times`.

    Attributes:
        method: Experimental. "fixed" leaves the factors of the teachers' entries; "adaptive" multiplies them by weights
            that follow from a teacher's `role` and from how slowly it is learned.
        period_steps: Experimental. Steps between two updates of the weights, and steps that the losses are averaged
            over; None for a hundredth of the run.
        start_step: Experimental. First step at which weights change; a number below 1 is the share of the run before
            it. None for the end of the warm-up (at most a quarter of the run), or for the step at which a frozen trunk
            begins to learn.
        ramp_steps: Experimental. Steps, or a share of the run below 1, over which the weights change from 1 to their
            targets; None for a tenth of the run.
    """

    method: Literal["fixed", "adaptive"] = "fixed"
    period_steps: int | None = Field(None, gt=0)
    start_step: StepsOrNone = None
    ramp_steps: StepsOrNone = None


class BalancingTimes(NamedTuple):
    """Times at which the weights of teachers move, in steps; a `BalancingRecipe` with all of it set."""

    start_step: int
    period_steps: int
    ramp_steps: int


class ContrastiveRecipe(RecipeSection):
    """A loss that compares similarities between images with the teacher's. Our own addition; C-RADIOv4 has none.

    All parts of a step are in memory at once, because each image is compared with the images of all parts.

    Attributes:
        weight: Experimental. Factor of the loss, besides a teacher's `summary_weight`; 0 for none. Start with 0.1; in
            the study `weightings` it made dense features and masks worse.
        bank_size: Experimental. Number of summaries of earlier steps, for each teacher, that an image is also compared
            with.
    """

    weight: float = Field(0.0, ge=0)
    bank_size: int = Field(4096, ge=0)


class TapsRecipe(RecipeSection):
    """Losses on inner blocks of the trunk, which learn from teachers through heads that are thrown away.

    Low blocks mostly learn basic features, middle ones semantics, upper ones those of a task, by the `role` of each
    teacher. The losses at the trunk's end stay as they are. Our own addition, after UNIC
    (https://arxiv.org/abs/2408.05088) and SAK (https://arxiv.org/abs/2410.14633); C-RADIOv4 has none.

    Attributes:
        weight: Experimental. Factor of these losses, besides a teacher's `feature_weight` and `summary_weight`; 0 for
            none. Start with 0.25; in the last three tenths of the run the factor falls to 0.
    """

    weight: float = Field(0.0, ge=0)


RunModeName = Literal["native", "fixed", "mosaic"]
Upsampling = Literal["bilinear", "tiles", "featsharp"]
Precision = Literal["float32", "bfloat16"]
TeacherDtype = Literal["float32", "bfloat16"]


OWN_ARCHITECTURE = "radio"
Clearable = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
"""A mapping that a recipe or a change empties by null: others are laid over that of the base, key by key."""


class StudentRecipe(RecipeSection):
    """The student network. Its adaptors and class tokens follow from the teachers.

    Attributes:
        architecture: "radio", the ViT of `preset` and `config`; "navit_small" and other names of NVIDIA's NaViT, a ViT
            without a table of positions (`navit_radio.py`); "e_radio"; "timm:NAME", a network of timm;
            "transformers:NAME", a network of transformers, where NAME is its type ("dinov2"), or a Hub id or folder
            with its configuration; or the import path of your own class, "my_package.my_module:MyNetwork". Weights
            are random unless `init_from` names some.
        arguments: Arguments that build the network: for NaViT its options (`NavitOptions`), for E-RADIO and timm those
            of the network, for transformers fields of its configuration, for your class those of its `__init__`.
        levels: Maps of such a network that are added to become the features, at the stride of the finest map. Negative
            numbers count from the last map, which is the network's final output. All maps are projected to the width
            `config.hidden_size`.
        frozen_stages: Number of first stages of such a network that are not trained.
        frozen_statistics: Whether its batch norms keep their running statistics, and normalize by them in training too;
            for a network that starts from weights and learns from other images than these did.
        preset: Name of a `RadioConfig` preset to start from, or the import path of a function that takes fields of
            `RadioConfig` by name and returns one, "my_package.my_module:my_student"; None for the config's defaults.
        config: Fields of `RadioConfig` that differ from the preset; null removes those of the base recipe.
        adaptor: Fields of `RadioAdaptorConfig` for every teacher's adaptor; a teacher's own `adaptor` wins.
        positions: Initial values of the position table: "normal" (random, as published) or "sincos" (two-dimensional
            sines, with which a short run learns much faster).
        attention: Implementation of transformers in training, for example "sdpa" or "eager"; small bfloat16 batches on
            a CPU are faster with "eager".
        gradient_checkpointing: Keep only each block's input for the backward pass and compute the rest again: a
            fraction of the memory for about a third more time.
        compile: Compile every block with `torch.compile`; not for packed images.
        passes_at_once: Accumulated parts of a step that run at the same time on the cores of a CPU, in one process and
            without noise or dropout; elsewhere they run one after the other.
        init_from: Folder, Hub id or "timm:NAME" of a checkpoint to start from. From a RADIO checkpoint, ours or
            NVIDIA's, the student gets the trunk, and heads and class tokens of teachers that are in the recipe too.
            From a plain ViT of transformers or timm (DINOv2, DINOv3, SigLIP, SigLIP2, MAE, ViT), or from a teacher of
            the recipe that is one, it gets the trunk. Another network of timm or transformers starts from a RADIO
            folder of this network, from a teacher of the recipe that is one, or with the published weights "timm:NAME"
            or "transformers:NAME": projections of several `levels` then start orthogonal. None for random weights.
        init_blocks: Blocks of that checkpoint to copy, in order, counted from 0; None for all.
        num_tokens: Nested dropout of a RADIO1D student (`student.config.downscale_levels`): number of global tokens of
            an image that reach the decoder in a step. "triangular" (density 2 - 2x, as published), "uniform", "beta"
            (mode at a quarter); "fixed" or None for all.
        matryoshka: Experimental. Let a NaViT student learn features whose first 128, 256, ... channels can be used
            alone: in each step those of an image from a random width on are zero (https://arxiv.org/abs/2205.13147).
    """

    architecture: ModelId = OWN_ARCHITECTURE
    arguments: Clearable = {}
    levels: Annotated[list[int], Len(1)] = [-1]
    frozen_stages: int = Field(0, ge=0)
    frozen_statistics: bool = False
    preset: str | None = None
    config: Clearable = {}
    adaptor: dict[str, Any] = {}
    positions: Literal["normal", "sincos"] = "normal"
    attention: str = "sdpa"
    gradient_checkpointing: Annotated[bool, INDECISIVE] = False
    compile: Annotated[bool, INDECISIVE] = False
    passes_at_once: Annotated[int, INDECISIVE] = Field(1, gt=0)
    init_from: Annotated[ModelId | None, STAGELESS] = None
    init_blocks: Annotated[list[Annotated[int, Ge(0)]] | None, STAGELESS] = None
    num_tokens: Literal["triangular", "uniform", "beta", "fixed"] | None = None
    matryoshka: bool = False

    @model_validator(mode="after")
    def _check_blocks(self) -> "StudentRecipe":
        rule = "null without `student.init_from`"
        require(self.init_blocks is None or self.init_from is not None, "init_blocks", self.init_blocks, rule)
        if self.architecture == OWN_ARCHITECTURE:
            own = {"arguments": {}, "levels": [-1], "frozen_stages": 0, "frozen_statistics": False}
            for name, default in own.items():
                value, rule = getattr(self, name), f"{default!r} with `student.architecture` '{OWN_ARCHITECTURE}'"
                require(value == default, name, value, rule)
        else:
            require(self.preset is None, "preset", self.preset, "null with another `student.architecture` than 'radio'")
        return self


class RunOptions(RecipeSection):
    """Run mode of a teacher; `modeling_radio.training.teachers.run_modes` has a class for each way.

    Attributes:
        run_mode: "native" (at the student's size), "fixed" (at one size, features resampled) or "mosaic" (at one size,
            many images in a pass). None for the kind's default, or "fixed" if a size is given.
        input_size_px: Side of the square images in the modes "fixed" and "mosaic"; None for the teacher's native size.
        upsample: Method that makes the grid of the mode "fixed" finer than the teacher's own: "bilinear", "tiles" (adds
            detail of tiles, untrained), or "featsharp" (a network that `radio upsampler` trained for it).
        upsampler: Experimental. Folder of that network.
        dtype: "float32", or "bfloat16" for autocast. Outputs are float32 in both cases.
    """

    run_mode: RunModeName | None = None
    input_size_px: int | None = Field(None, gt=0)
    upsample: Upsampling = "bilinear"
    upsampler: str | None = None
    dtype: TeacherDtype = "float32"

    @model_validator(mode="after")
    def _check_upsampler(self) -> "RunOptions":
        rule = "a folder that radio upsampler wrote with `upsample` 'featsharp', and null without"
        require((self.upsample == "featsharp") == bool(self.upsampler), "upsampler", self.upsampler, rule)
        return self


class TeacherRecipe(RunOptions, NamedSection):
    """One frozen teacher.

    Attributes:
        name: The adaptor's name: the same string in config, checkpoint keys and logs.
        kind: Registered kind of `training.teachers`, or the import path of a class, "my_package.my_module:MyTeacher".
        source: Hub id or folder; None if the kind has only one.
        options: Further arguments of that kind, for example which layer.
        device: Where it runs, for example "cuda:1"; None for the student's device.
        shard: Divide the weights of its blocks among the ranks of a machine that run it, and gather one block at a time
            (FSDP2). For a teacher that is too large beside the student; each pass gathers all of its blocks.
        feature_weight: Factor of its dense loss.
        summary_weight: Factor of its summary loss, where it has a summary.
        adaptor: Fields of `RadioAdaptorConfig` for this adaptor, for example `hidden_size`.
        role: Experimental. Kind of its features: "basic", "semantic" or "task". It decides when the teacher has most
            weight if `balancing.method` is "adaptive", and the depth of its taps (`taps.weight`); otherwise it is not
            used.
    """

    kind: str
    source: ModelId | None = None
    options: Clearable = {}
    device: Annotated[str | None, INDECISIVE] = None
    shard: Annotated[bool, INDECISIVE] = False
    feature_weight: float = Field(1.0, ge=0)
    summary_weight: float = Field(1.0, ge=0)
    adaptor: Clearable = {}
    role: Role | None = None

    @model_validator(mode="after")
    def _check(self) -> "TeacherRecipe":
        from torch.nn import ModuleDict  # takes seconds to import, which `--help` need not wait for

        # PyTorch keeps the heads in a `ModuleDict`, which takes no name of its own attributes and methods.
        is_name = re.fullmatch(r"[\w-]+", self.name) is not None and not hasattr(ModuleDict(), self.name)
        require(is_name, "name", self.name, "of letters, digits, '_' and '-', and no word of PyTorch's such as 'keys'")
        for key in self.options:
            rule = f"written one level up, as teachers.{self.name}.{key}"
            require(key not in type(self).model_fields, f"options.{key}", self.options[key], rule)
        return self

    def run_options(self) -> RunOptions:
        """Return how it runs."""
        return RunOptions(**self.model_dump(include=set(RunOptions.model_fields)))


class StandardizationRecipe(RecipeSection):
    """Standardization of dense targets, and when its statistics settle (dispersions too).

    Attributes:
        method: A key of `targets.phi_s.STANDARDIZERS`; "none" only subtracts the mean, for comparison.
        calibration_steps: Batches of teacher features that are measured before the first step.
        estimation_steps: Steps, or a share of the run below 1, during which the statistics are updated; then they are
            frozen.
    """

    method: Literal["phi_s", "channel", "global", "none"] = "phi_s"
    calibration_steps: int = Field(1, gt=0)
    estimation_steps: Steps = 3000


class LossRecipe(RecipeSection):
    """Losses; the entries of teachers and partitions hold the weights.

    Attributes:
        features: A key of `losses.features.FEATURE_LOSSES`, or the import path of a function with the same arguments
            and result, "my_package.my_module:my_loss". All images have equal weight, also if student and teacher only
            share a small part of one (C-RADIOv4's Eq 1).
        summary: A key of `losses.summaries.SUMMARY_LOSSES`, or an import path.
        border: Rule for the band between the centers of a teacher's outermost positions and the edge of its crop, where
            a student with more patches has its outermost ones. "masked" compares nothing there; "extended" continues
            the teacher's map linearly.
    """

    features: Annotated[str, OneOf(("mse", "smooth_l1", "cosine", "cosine_smooth_l1"), imports=True)] = "mse"
    summary: Annotated[str, OneOf(("balanced", "angle", "cosine"), imports=True)] = "balanced"
    border: Literal["masked", "extended"] = "masked"


class MesaRecipe(RecipeSection):
    """The student's distance to its moving average on another crop of the same image (C-RADIOv4 2.3.2).

    Attributes:
        weight: Factor of the loss; 0 for none.
        start_step: First step with this loss; a number below 1 is the share of the run before it. Until then the
            average is not run.
    """

    weight: float = Field(0.0, ge=0)
    start_step: Steps = 0


class OptimizerRecipe(RecipeSection):
    """The optimizer and its limits.

    Attributes:
        name: A key of `distillation.optimizers.OPTIMIZERS`.
        learning_rate: Peak of the schedule.
        weight_decay: Weight decay of matrices; biases, norms, the position table and the prefix tokens have none.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        fallback_lr_scale: Muon only: learning rate of all parameters outside of the blocks' matrices, as a factor of
            `learning_rate`; NAdamW updates these.
        clip_norm: Largest gradient norm; None for no clipping.
        trunk_frozen_steps: Steps, or a share of the run below 1, during which only the adaptors learn; the trunk has no
            backward pass then.
        trunk_warmup_steps: Steps, or a share of the run below 1, over which the learning rate of a frozen trunk rises
            after that, as a factor on the schedule's; None for `schedule.warmup_steps`.
        max_bad_steps: Number of consecutive steps with a non-finite gradient, each skipped, after which the run ends.
    """

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    fallback_lr_scale: float = Field(1.0, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    trunk_frozen_steps: Steps = 0
    trunk_warmup_steps: StepsOrNone = None
    max_bad_steps: Annotated[int, INDECISIVE] = Field(10, gt=0)


class ScheduleRecipe(RecipeSection):
    """Length of the run and the course of the learning rate: linear warm-up, then a cosine.

    Attributes:
        num_steps: Optimizer steps.
        warmup_steps: Steps, or a share of the run below 1, of the linear rise.
    """

    num_steps: int = Field(10_000, gt=0)
    warmup_steps: Steps = 500

    def in_steps(self, value: Steps) -> int:
        """Return a number of steps, given as such or as a share of this run."""
        return in_steps(value, self.num_steps)


class EmaRecipe(RecipeSection):
    """The moving average of the student.

    Attributes:
        decay: Final decay.
        is_exported: Export the average instead of the student itself.
    """

    decay: float = Field(0.999, ge=0, lt=1)
    is_exported: bool = True


class DampRecipe(RecipeSection):
    """Multiplicative noise on the student's weights in training (C-RADIOv4 2.4).

    Attributes:
        sigma: Standard deviation of the factors around 1; 0 for none. Each rank and each accumulated part of a step
            draws its own, as published.
    """

    sigma: float = Field(0.0, ge=0)


class SpectralRecipe(RecipeSection):
    """Spectral reparametrization of the blocks' linear layers (PHI-S, A.7).

    Attributes:
        is_used: Train the student with spectral scales; the exported model is a plain one.
    """

    is_used: bool = False


class CheckpointsRecipe(RecipeSection):
    """Times of checkpoints and number of those that are kept. A resumed run may change this section.

    Attributes:
        every_steps: Steps between two checkpoints; the last step always writes one.
        keep: Newest checkpoints that stay.
    """

    every_steps: int = Field(1000, gt=0)
    keep: int = Field(2, gt=0)


class ExportRecipe(RecipeSection):
    """Changes of the student when it is exported. A resumed run may change this section.

    Attributes:
        feature_normalizer: Standardize the backbone's dense features by their own PHI-S, as some of NVIDIA's
            checkpoints do: zero mean and unit variance in each channel. The adaptors' outputs stay the same.
            transformers' native RADIO has no such layer: opened without trust, it gives the features before it.
        intermediate_normalizers: The same for `get_intermediate_features`: "none", a rotation "per_block", or one
            "shared" rotation with a mean and a scale for each block.
        fold_layer_scale: Fold the LayerScale of a student that has it (`student.config.use_layer_scale`) into its
            linear layers: outputs stay, and readers without LayerScale, such as vLLM, give them too. Of several stages
            the last one folds it.
    """

    feature_normalizer: bool = False
    intermediate_normalizers: Literal["none", "per_block", "shared"] = "none"
    fold_layer_scale: bool = False

    @property
    def has_normalizers(self) -> bool:
        """True if any are asked for."""
        return self.feature_normalizer or self.intermediate_normalizers != "none"


class LoggingRecipe(RecipeSection):
    """Logs, figures and measurements of a run. A resumed run may change this section.

    Attributes:
        every_steps: Steps between two records.
        trackers: Names of Accelerate's trackers, for example `[tensorboard]`.
        picture_source: Source of these images: "demo", the import path of a `MadeImages`, or a folder of
            images, whose held-out part is shown; None for `data.source` if it is one of these. Streamed folders have no
            held-out part.
        metrics_every_steps: Steps between two measurements on held-out images of `picture_source`; the last step is
            always measured. With every fifth measurement comes a figure of some images. None measures and draws none.
        metrics_sizes_px: Sides of the measured images; None for the smallest, middle and largest trained size.
        knn_data: Folder with a sub-folder of images for each class, such as the validation images of ImageNet: the
            accuracy of kNN on it is measured, by the other images of the folder; None measures none.
        knn_every_steps: Steps between two of these measurements; the last step is always measured.
    """

    every_steps: int = Field(20, gt=0)
    trackers: list[str] = ["tensorboard"]
    picture_source: str | None = None
    metrics_every_steps: int | None = Field(200, gt=0)
    metrics_sizes_px: list[Count] | None = None
    knn_data: Path | None = None
    knn_every_steps: Count = 1000

    @model_validator(mode="after")
    def _check(self) -> "LoggingRecipe":
        sizes = self.metrics_sizes_px
        require(sizes != [], "metrics_sizes_px", sizes, "at least one size, or null")
        return self
