"""What benchmarks of networks have in common: device, preset, image sides and data types."""

from typing import Annotated

import torch

from foundation.fields import OneOf
from foundation.settings import Settings, require
from modeling_radio import RadioConfig
from modeling_radio.resolution_radio import check_multiple, largest_side


DTYPES = ("float32", "bfloat16", "float16")


class DeviceSettings(Settings):
    """Where something runs.

    Attributes:
        device: "cpu" or "cuda", the first GPU.
    """

    device: Annotated[str, OneOf(("cpu", "cuda"))] = "cpu"

    def check_device(self) -> None:
        """Refuse a GPU where there is none, before any long work.

        Raises:
            ValueError: If there is none.
        """
        require(self.device == "cpu" or torch.cuda.is_available(), "device", self.device, "'cpu': there is no GPU here")


class NetworkSettings(DeviceSettings):
    """Which network runs on which images.

    Attributes:
        preset: Shape of the model.
        sizes: Image sides in pixels.
        dtypes: Data types.
    """

    preset: Annotated[str, OneOf(RadioConfig.presets)] = "radio_v2.5-b"
    sizes: list[int] = [224, 512, 1024]
    dtypes: Annotated[list[str], OneOf(DTYPES)] = ["float32", "bfloat16"]


def check_sizes(preset: str, sizes: list[int]) -> None:
    """Refuse image sides that the preset cannot have, before any long work.

    Raises:
        ValueError: If one is no multiple of its patch in its range.
    """
    config = RadioConfig.from_preset(preset)
    for size in sizes:
        check_multiple("`sizes`", size, size, config.patch_size, largest_side(config))
