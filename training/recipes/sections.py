"""The sections of a recipe, as typed settings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Gt, Len, Lt
from pydantic import BeforeValidator, Field, model_validator

from modeling_radio.core.ids import ModelId
from modeling_radio.core.imports import is_object_path
from modeling_radio.core.settings import Mark, OneOf, Settings, SettingsError, require


Count = Annotated[int, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]

INDECISIVE = Mark("may change between two sessions of a run: it moves the weights by no more than rounding")
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


class FiltersRecipe(RecipeSection):
    """Images that are left out, and counted in `data.json` of the run's folder. Null switches a filter off.

    Attributes:
        min_side_ratio: Smallest shorter side of an image, as a multiple of the largest resolution of the partition
            (`sizes_px`; with cached teachers `data.image_size_px`). 1 leaves out images that would be enlarged.
        max_aspect: Largest ratio of the longer side to the shorter one.
        min_deviation: Smallest standard deviation of an image's colors, in levels of 255, in the channel where it is
            largest, on a thumbnail of 32 x 32 pixels. 2 leaves out empty pages.
        max_distance: Two images are near duplicates if their perceptual hashes differ in at most this many of 64 bits;
            only the one with the most pixels stays. 0 finds copies of other sizes and qualities; above 4 different
            images begin to match.
    """

    min_side_ratio: float | None = Field(None, gt=0)
    max_aspect: float | None = Field(None, ge=1)
    min_deviation: float | None = Field(None, gt=0)
    max_distance: int | None = Field(None, ge=0, le=7)

    @property
    def is_used(self) -> bool:
        """True if any filter is on."""
        return any(value is not None for value in self.to_dict().values())

    @property
    def needs_pixels(self) -> bool:
        """True if images must be decoded, and not only their headers read."""
        return self.min_deviation is not None or self.max_distance is not None


class BalanceRecipe(RecipeSection):
    """Balanced sampling: images of small groups are shown more often than images of large ones.

    Attributes:
        features: Data set that `radio extract` wrote of the same images, for streams by `--streaming`; null with
            `weights`.
        column: Column of it whose values are the groups, such as label; with `clusters` that of the vectors, by default
            summary.
        clusters: Number of clusters of the vectors that are the groups; null takes the values of `column`.
        weights: Instead of features: the column of the images' own table, or the file of each sample in .tar shards
            ("weight" of 000.jpg is 000.weight), with a number: how often an image is shown in a pass on average, such
            as 0.1 or 2.3. Without streaming the mean counts as 1.
        power: The weight of an image is the inverse of the size of its group to this power. 1 shows all groups equally
            often.
        max_repeats: Limit to how often an image is shown, as a multiple of its share without balance. Our choice: the
            images of a tiny group would be learned by heart.
    """

    features: Path | None = None
    column: str | None = None
    clusters: int | None = Field(None, gt=1)
    weights: str | None = None
    power: float = Field(1.0, gt=0, le=1)
    max_repeats: float = Field(10.0, gt=1)

    @model_validator(mode="after")
    def _check(self) -> "BalanceRecipe":
        has_groups = self.weights is None
        rule = "a folder of `radio extract`, or null with `weights`"
        require((self.features is not None) == has_groups, "features", self.features, rule)
        is_given = self.column is not None or self.clusters is not None
        require(is_given or not has_groups, "column", self.column, "given without `clusters`")
        for name, default in (("column", None), ("clusters", None), ("power", 1.0)):
            value = getattr(self, name)
            require(has_groups or value == default, name, value, f"{default} with `weights`, which need no groups")
        return self


IMAGE_SOURCES = {
    "demo": "modeling_radio.demo.images:DEMO",
    "demo-pypi": "modeling_radio.demo.images:DEMO_PYPI",
    "demo-permissive": "modeling_radio.demo.images:DEMO_PERMISSIVE",
}
"""Import paths of the sources whose images are made by number: instances of `MadeImages`."""


def is_made(source: str) -> bool:
    """Return whether images are made by number: the source is a name of `IMAGE_SOURCES`, or an import path."""
    return source in IMAGE_SOURCES or is_object_path(source)


DEFAULT_BATCH_SIZE = 64
AUTO = "auto"
"""Value of settings that follow from the device."""


def require_range(name: str, bounds: tuple[float, float]) -> None:
    """Refuse bounds that are not above 0, or not in order."""
    require(0 < bounds[0] <= bounds[1], name, bounds, "two numbers above 0, the smaller first")


class ImageSource(RecipeSection):
    """Source of the training images.

    Attributes:
        source: "demo", "demo-pypi" or "demo-permissive"; a folder of images, of Parquet files or of webdataset shards;
            a pattern of `.parquet` or `.tar` files, also with `{000..123}`; or a data set of the Hub, `ORG/NAME`
            if a folder has this name too, followed by `:config` if it has several configurations. Or the import path of
            a `MadeImages` of your own, "my_package.my_module:MY_IMAGES".
        split: Split of a Hub data set; None for "train".
        column: Column of the images; None finds it.
        balance: Frequencies of the images of rare and frequent groups; null shows all equally often.
    """

    source: str
    split: str | None = None
    column: str | None = None
    balance: BalanceRecipe | None = None


class SourceRecipe(ImageSource):
    """One of several sources.

    Attributes:
        weight: Share of the images that come from here.
    """

    weight: float = Field(gt=0, le=1)


RGB = (0, 1, 2)
"""Channels of a picture."""


class DataRecipe(ImageSource):
    """The unlabeled training images.

    Attributes:
        mixed_in: Further sources with their weights; the first one gives the rest of the images.
        streaming: Read Parquet, webdataset and Hub data in order instead of copying them to `datasets`' cache first;
            for data that are too large to copy.
        shuffle_buffer: Streaming only: number of images that are shuffled together, in memory.
        num_images: Number of images to use; None for all.
        image_size_px: Side of images that are made, such as the demo's. With cached teacher features all images are
            cropped to squares of this side, which the teachers see. Otherwise whole images are used.
        seed: Seed of generated images. It is separate from `Recipe.seed`, so that several students can share a cache.
        num_workers: Processes that decode images, per rank.
        filters: Images that are left out.
        num_channels: Experimental. Channels of the student's images, which are TIFF, GeoTIFF or `.npy` files of 8 or 16
            bits in folders; None for pictures, in RGB.
        rgb_channels: Experimental. Those of the `num_channels` that the teachers see as red, green and blue.
        rgb_white: Experimental. Value in [0, 1] that the teachers see as white: many sensors use a small part of 16
            bits.
    """

    mixed_in: list[SourceRecipe] = []
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0)
    num_images: int | None = Field(None, gt=0)
    image_size_px: int = Field(224, gt=0)
    seed: int = Field(0, ge=0)
    num_workers: Annotated[int, INDECISIVE] = Field(2, ge=0)
    filters: FiltersRecipe = FiltersRecipe()
    num_channels: int | None = Field(None, gt=0)
    rgb_channels: tuple[int, int, int] = RGB
    rgb_white: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "DataRecipe":
        is_free = self.num_images is None or not (self.streaming or self.mixed_in)
        require(is_free, "num_images", self.num_images, "null with `data.streaming` or `data.mixed_in`")
        can_compare = not self.streaming or self.filters.max_distance is None
        rule = "null with `data.streaming`, where images are seen one after the other and not among each other"
        require(can_compare, "filters.max_distance", self.filters.max_distance, rule)
        made = [entry.source for entry in (self, *self.mixed_in) if is_made(entry.source)]
        rule = "left out, all null, with images that are made, such as the demo's, which have no files to filter"
        require(not made or not self.filters.is_used, "filters", self.filters.to_dict(), rule)
        is_balanced = any(entry.balance is not None for entry in (self, *self.mixed_in))
        rule = "null with `data.num_images` or images that are made, such as the demo's"
        can_balance = not (made or self.num_images is not None)
        require(can_balance or not is_balanced, "balance", "a mapping", rule)
        weights = [entry.weight for entry in self.mixed_in]
        require(sum(weights) < 1, "mixed_in (weights)", weights, "numbers with a sum below 1")
        for_pictures = bool(made) or self.streaming or self.filters.is_used or is_balanced
        rule = "null with images that are made, `data.streaming`, `data.filters` and `data.balance`"
        require(self.num_channels is None or not for_pictures, "num_channels", self.num_channels, rule)
        last = (self.num_channels or len(RGB)) - 1
        are_known = all(0 <= each <= last for each in self.rgb_channels)
        require(are_known, "rgb_channels", self.rgb_channels, f"channels from 0 to {last}")
        is_plain = self.rgb_channels == RGB and self.rgb_white == 1
        rule = "given with `data.rgb_channels` and `data.rgb_white`"
        require(is_plain or self.num_channels is not None, "num_channels", None, rule)
        return self

    def sources(self) -> list[SourceRecipe]:
        """Return all sources; their weights sum to 1."""
        rest = 1 - sum(entry.weight for entry in self.mixed_in)
        return [
            SourceRecipe(source=self.source, weight=rest, split=self.split, column=self.column, balance=self.balance),
            *self.mixed_in,
        ]


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
        name: For logs and random streams, for example "low".
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

    @model_validator(mode="after")
    def _check(self) -> "BalancingRecipe":
        for name in () if "method" in self.model_fields_set else ("period_steps", "start_step", "ramp_steps"):
            rule = "left out where nothing moves: give a `method`, 'fixed' for none"
            require(getattr(self, name) is None, name, getattr(self, name), rule)
        return self


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

    @model_validator(mode="after")
    def _check(self) -> "ContrastiveRecipe":
        is_left_out = "weight" in self.model_fields_set or self.bank_size == 4096
        rule = "left out where there is no such loss: give a `weight`, 0 for none"
        require(is_left_out, "bank_size", self.bank_size, rule)
        return self


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
TeacherPrecision = Literal["float32", "bfloat16"]


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
        precision: "float32", or "bfloat16" for autocast. Outputs are float32 in both cases.
    """

    run_mode: RunModeName | None = None
    input_size_px: int | None = Field(None, gt=0)
    upsample: Upsampling = "bilinear"
    upsampler: str | None = None
    precision: TeacherPrecision = "float32"

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
        picture_source: Source of these images: "demo", "demo-pypi", the import path of a `MadeImages`, or a folder of
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
