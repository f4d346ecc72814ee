"""The images of a run: where they come from, what is seen of them, and in which batches."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import Field, model_validator

from foundation.settings import require
from training.recipe_sections.base import INDECISIVE, Count, Named, RecipeSection
from training.recipe_sections.filters import FiltersRecipe


DEMO_SOURCES = ("demo", "demo-pypi")
"""Sources whose images are made by number."""

DEFAULT_BATCH_SIZE = 64


def require_range(name: str, bounds: tuple[float, float]) -> None:
    """Refuse bounds that are not above 0, or not in order."""
    require(0 < bounds[0] <= bounds[1], name, bounds, "two numbers above 0, the smaller first")


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
        jpeg_drafts: Decode JPEGs at 1/2, 1/4 or 1/8 of their size where every crop stays at least twice as large as
            what it is resized to; off where pixels must be those of the whole image.
        filters: Images that are left out.
    """

    mixed_in: list[SourceRecipe] = []
    streaming: bool = False
    shuffle_buffer: int = Field(1000, gt=0)
    num_images: int | None = Field(None, gt=0)
    image_size_px: int = Field(224, gt=0)
    seed: int = Field(0, ge=0)
    num_workers: Annotated[int, INDECISIVE] = Field(2, ge=0)
    jpeg_drafts: bool = True
    filters: FiltersRecipe = FiltersRecipe()

    @model_validator(mode="after")
    def _check(self) -> "DataRecipe":
        is_free = self.num_images is None or not (self.streaming or self.mixed_in)
        require(is_free, "num_images", self.num_images, "null with `data.streaming` or `data.mixed_in`")
        can_compare = not self.streaming or self.filters.max_distance is None
        rule = "null with `data.streaming`, where images are seen one after the other and not among each other"
        require(can_compare, "filters.max_distance", self.filters.max_distance, rule)
        made = [entry.source for entry in (self, *self.mixed_in) if entry.source in DEMO_SOURCES]
        rule = "left out, all null, with images of the demo, which are made and have no files to filter"
        require(not made or not self.filters.is_used, "filters", self.filters.to_dict(), rule)
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
        cache_format: How dense features are kept there: "float16", or "int8", a byte for each number, in equal steps
            over a channel's range in an image. docs/benchmarks.md has what is lost.
        crop_scale: Smallest and largest area of an online view, as shares of the largest view of its shape that fits
            into the image; beyond 1 it reaches over the image's edges.
        crop_aspect: Smallest and largest width over height of what a view shows; cached ones only where they keep it.
        is_square: Whether views become squares, whatever their aspect ratio; false keeps it, at as many patches as a
            square of the size has, up to rounding.
        aspect_steps: Aspect ratios that there are where it is kept, spread evenly over `crop_aspect`: fewer shapes, so
            that more images share a pass of a teacher and a call of attention. None for any ratio.
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
    cache_format: Literal["float16", "int8"] = "float16"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    is_square: bool = True
    aspect_steps: int | None = Field(None, gt=0)
    parts_at_once: int = Field(1, gt=0)
    max_shift_patches: int = Field(2, ge=0)
    shift_deviation_patches: float = Field(0.5, ge=0)
    flip_probability: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "ViewsRecipe":
        require_range("crop_scale", self.crop_scale)
        require_range("crop_aspect", self.crop_aspect)
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
        crop_scale: With online teachers, of its images; None for that of `views`.
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
        rule = "a number, or null where `token_budget` is one" if self.token_budget is None else "null with one"
        require(is_one, "batch_size", self.batch_size, f"{rule} (token_budget is {self.token_budget})")
        if self.crop_scale is not None:
            require_range("crop_scale", self.crop_scale)
        for name, windows in (("windows_px", self.windows_px), ("vitdet_windows", self.vitdet_windows)):
            require(windows != [], name, windows, "at least one size, or null")
        if self.probabilities is not None:
            is_match = len(self.probabilities) == len(self.sizes_px) and sum(self.probabilities) > 0
            rule = "one number >= 0 for each of sizes_px, not all 0"
            require(is_match, "probabilities", self.probabilities, rule)
        return self
