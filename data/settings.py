"""The settings of images, shared by all commands that read some: those of a recipe, with labels, and without."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from modeling_radio.core.imports import is_object_path
from modeling_radio.core.settings import INDECISIVE, Problem, Settings, SettingsError, require


IMAGE_SOURCES = {
    "demo": "modeling_radio.demo.images:DEMO",
    "demo-permissive": "modeling_radio.demo.images:DEMO_PERMISSIVE",
}
"""Import paths of the sources whose images are made by number: instances of `MadeImages`."""

RGB = (0, 1, 2)
"""Channels of a picture."""


def is_made(source: str) -> bool:
    """Return whether images are made by number: the source is a name of `IMAGE_SOURCES`, or an import path."""
    return source in IMAGE_SOURCES or is_object_path(source)


class ImageSource(Settings):
    """Source of the training images.

    Attributes:
        source: "demo" or "demo-permissive"; a folder of images, of Parquet files or of webdataset shards;
            a pattern of `.parquet` or `.tar` files, also with `{000..123}`; or a data set of the Hub, `ORG/NAME`
            if a folder has this name too, followed by `:config` if it has several configurations. Or the import path of
            a `MadeImages` of your own, "my_package.my_module:MY_IMAGES".
        split: Split of a Hub data set; None for "train".
        column: Column of the images; None finds it.
        weights: Where each image has a number that says how often it is shown in relation to the others: a column of a
            table, the file of each sample in .tar shards ("weight" of 000.jpg is 000.weight), or a column of a folder's
            `metadata.csv`. None shows all images equally often.
    """

    source: str
    split: str | None = None
    column: str | None = None
    weights: str | None = None


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
        streaming: Read Parquet, webdataset and Hub data in order instead of copying them to `datasets`' cache first;
            for data that are too large to copy.
        shuffle_buffer: Streaming only: number of images that are shuffled together, in memory.
        num_images: Number of images to use; None for all.
        image_size_px: Side of images that are made, such as the demo's. With cached teacher features all images are
            cropped to squares of this side, which the teachers see. Otherwise whole images are used.
        seed: Seed of generated images. It is separate from `Recipe.seed`, so that several students can share a cache.
        num_workers: Processes that decode images, per rank.
        min_side_ratio: Smallest shorter side of an image, as a multiple of the largest resolution of its partition
            (`sizes_px`; with cached teachers `data.image_size_px`). 1 leaves out images that would be enlarged. Those
            left out are counted in `data.json` of the run's folder. None takes all images.
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
    min_side_ratio: float | None = Field(None, gt=0)
    num_channels: int | None = Field(None, gt=0)
    rgb_channels: tuple[int, int, int] = RGB
    rgb_white: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "DataRecipe":
        is_free = self.num_images is None or not (self.streaming or self.mixed_in)
        require(is_free, "num_images", self.num_images, "null with `data.streaming` or `data.mixed_in`")
        made = [entry.source for entry in (self, *self.mixed_in) if is_made(entry.source)]
        rule = "null with images that are made, such as the demo's, which have no files"
        require(not made or self.min_side_ratio is None, "min_side_ratio", self.min_side_ratio, rule)
        weighted = next((entry.weights for entry in (self, *self.mixed_in) if entry.weights is not None), None)
        rule = "null with `data.num_images` or images that are made, such as the demo's"
        require(not (made or self.num_images is not None) or weighted is None, "weights", weighted, rule)
        weights = [entry.weight for entry in self.mixed_in]
        require(sum(weights) < 1, "mixed_in (weights)", weights, "numbers with a sum below 1")
        for_pictures = bool(made) or self.streaming or self.min_side_ratio is not None or weighted is not None
        rule = "null with images that are made, `data.streaming`, `data.min_side_ratio` and `data.weights`"
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
        own = {name: getattr(self, name) for name in ImageSource.model_fields}
        return [SourceRecipe(**own, weight=rest), *self.mixed_in]


class SampleOptions(Settings):
    """Base of the options of a command that may read some of the images only.

    Attributes:
        max_images: Number of images of each split, a seeded choice; by default all.
    """

    title: ClassVar[str] = "data"

    max_images: int | None = Field(None, gt=0)


class StreamOptions(Settings):
    """Base of the options of a command that reads images of tables.

    Attributes:
        streaming: Read `.parquet` or `.tar` files, or a data set of the Hub, in order, without a copy on the disk.
        image_column: Column of the images; by default the first of the usual names.
    """

    title: ClassVar[str] = "data"

    streaming: bool = False
    image_column: str | None = None


class ImageSourceOptions(StreamOptions, SampleOptions):
    """Base of the options of a command that reads images without labels.

    Attributes:
        id_column: Column with a name for each image; by default the image's path in its folder, the key in its
            webdataset shard, or its number.
        splits: Splits that are read; by default those called train, validation and test, or similar.
    """

    title: ClassVar[str] = "data"

    id_column: str | None = None
    splits: list[str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _check_streaming(self) -> "ImageSourceOptions":
        """Refuse choices among all images where these are not known."""
        text = "`{path}` chooses among all images, which a stream does not know: leave it or `streaming` out."
        chosen = [name for name in ("splits", "max_images") if getattr(self, name) is not None]
        if self.streaming and chosen:
            raise SettingsError(*(Problem((name,), text) for name in chosen))
        return self


class LabeledSource(StreamOptions):
    """Base of the options of a command that reads labeled images.

    Attributes:
        box_format: Format of the boxes of a `datasets` source, in pixels.
        depth_scale: Units per meter of stored depth; by default 1000 for whole numbers and 1 for others.
    """

    title: ClassVar[str] = "data"

    box_format: Literal["xywh", "xyxy", "cxcywh"] = "xywh"
    depth_scale: float | None = Field(None, gt=0)


class LabeledData(LabeledSource):
    """Base of the settings of a command that reads labeled images for one task.

    Attributes:
        data: Folder, file or Hub id of the labeled images: folders of classes, `images/` beside `masks/` or `depth/`,
            COCO, Parquet, webdataset.
        task: Name of the task, for messages.
        skip_damaged: Leave out and name images that cannot be decoded, or whose mask cannot; each is decoded once for
            this, before the run. By default the first one ends the run. Streams always leave them out.
        classes: Names of the classes in the order of their ids; by default those of the data.
        target_column: Column of the labels, masks, boxes or depth maps; by default the first of the usual names.
        num_channels: Experimental. Channels of TIFF, GeoTIFF or .npy files, of 8 or 16 bits or floats in [0, 1], which
            are read in full; by default the files are pictures, and become RGB of 8 bits.
        validation_share: Share of the images to hold out if the source has no split of its own: of each class of labels
            or boxes, at least one image.
        seed: Seed of the split, and of the order of a stream.
    """

    data: str = Field(min_length=1)
    task: str
    skip_damaged: bool = False
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    target_column: str | None = None
    num_channels: int | None = Field(None, gt=0)
    validation_share: float = Field(0.1, gt=0, lt=1)
    seed: int = 0
