"""Settings of `radio predict` and `radio label`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from modeling_radio.core.ids import ModelId
from modeling_radio.core.settings import DeviceOptions, DtypeOptions, TileOptions
from modeling_radio.data.settings import ImageSourceOptions, SampleOptions


class PredictSettings(ImageSourceOptions, TileOptions, DtypeOptions, DeviceOptions):
    """Settings of predictions.

    Attributes:
        checkpoint: Folder or Hub id of a tuned model or adapter, or of one with a text tower.
        data: Folder of images, or `.parquet` or `.tar` files, a pattern or a folder of them, or `ORG/NAME` on the Hub.
        output: Folder of the answers; an unfinished one of the same settings is completed.
        classes: Classes of a zero-shot model, in words.
        threshold: Least score of classes or objects, in [0, 1], or "tuned" for that of each class; by default objects
            have that of the model, and all classes are written.
        base: Folder or Hub id of an adapter's base; by default the one on the Hub that the adapter names.
        batch_size: Images for each pass.
    """

    checkpoint: Annotated[ModelId, Field(min_length=1)]
    data: str
    output: Path
    classes: list[str] | None = Field(None, min_length=1)
    threshold: float | Literal["tuned"] | None = None
    base: str | None = None
    batch_size: int = Field(16, gt=0)


class LabelSettings(SampleOptions, DtypeOptions, DeviceOptions):
    """Settings of labels by words.

    Attributes:
        data: Folder of images.
        words: Words of the objects, such as "crack, rust".
        checkpoint: Folder or Hub id of a RADIO model with a text tower, or of SAM3.
        output: Folder of the labels; an unfinished one of the same settings is completed.
        around: Words of what else is in the images, whose regions are left out. Each place goes to its nearest word,
            so name what surrounds the objects. SAM3 needs none and ignores them.
        threshold: Least score of an object, in [0, 1]; by default 0.1 for RADIO, 0.5 for SAM3.
        batch_size: Images for each pass.
    """

    data: str
    words: list[str] = Field(min_length=1)
    checkpoint: Annotated[ModelId, Field(min_length=1)]
    output: Path
    around: list[str] = Field(["background"])
    threshold: float | None = Field(None, ge=0, le=1)
    batch_size: int = Field(8, gt=0)
