"""Times the image processor beside transformers' and timm's at equal work: from PIL images to pixels in [0, 1].

    python -m benchmarks.preprocessing [--sizes 224,512] [--batch-size 16] [--budget-seconds 4]

All resize to one exact size with the antialiased bicubic filter and rescale, none normalizes: transformers'
`SiglipImageProcessor` (torchvision), with and without grouping of equal shapes, and its `SiglipImageProcessorPil`;
timm's `create_transform`, image by image, whose steps are PIL's. What those of torchvision answer is equal bit by bit.
Photographs are stood in for by smooth noise of their size: a single one of 12 megapixels, a batch of VGA size, and one
of eight sizes.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import transformers
from PIL import Image
from pydantic import Field
from timm.data import create_transform
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring.results import report
from benchmarks.measuring.turns import MIN_ROUNDS, Turns, take_turns
from foundation.command_line import Command
from foundation.settings import Settings
from modeling_radio import RadioConfig, RadioImageProcessor


OURS = "ours"
PATCH = 16
COARSENESS = 16
"""Pixels between independent ones of a picture. Our choice: neighbors are alike as in photographs."""

Case = tuple[str, list[Image.Image]]


def draw_picture(width: int, height: int, seed: int) -> Image.Image:
    """Return a smooth picture of noise."""
    side = (-(-height // COARSENESS), -(-width // COARSENESS), 3)
    noise = np.random.default_rng(seed).integers(0, 256, side, dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def draw_cases(batch_size: int) -> list[Case]:
    """Return by name what is brought to one size: a large photograph, a small one, batches of one size and of eight."""
    equal = [draw_picture(640, 480, number) for number in range(batch_size)]
    mixed = [draw_picture(320 + 96 * (number % 8), 720 - 48 * (number % 8), number) for number in range(batch_size)]
    return [
        ("one of 4000 x 3000", [draw_picture(4000, 3000, 0)]),
        ("one of 640 x 480", equal[:1]),
        (f"{batch_size} of 640 x 480", equal),
        (f"{batch_size} of eight sizes", mixed),
    ]


def build_contenders(size_px: int) -> dict[str, Callable[[list[Image.Image]], Tensor]]:
    """Return by name what brings images to a batch `(images, 3, size_px, size_px)`."""
    size = {"height": size_px, "width": size_px}
    equal_work: dict[str, Any] = {"size": size, "resample": Image.Resampling.BICUBIC, "do_normalize": False}
    transform = create_transform(
        (3, size_px, size_px),
        interpolation="bicubic",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        crop_pct=1.0,
        crop_mode="squash",
    )

    def processor(built: Any, **options: Any) -> Callable[[list[Image.Image]], Tensor]:
        return lambda images: built(images, return_tensors="pt", **options)["pixel_values"]

    torchvision = transformers.SiglipImageProcessor(**equal_work)
    return {
        OURS: processor(RadioImageProcessor(size=size)),
        "transformers, torchvision": processor(torchvision),
        "transformers, torchvision, grouped": processor(torchvision, disable_grouping=False),
        "transformers, PIL": processor(transformers.SiglipImageProcessorPil(**equal_work)),
        "timm": lambda images: torch.stack([transform(image) for image in images]),
    }


def measure(settings: "PreprocessingSettings") -> list[dict[str, object]]:
    """Return one row for each size and case."""
    rows = []
    for size_px in settings.sizes:
        contenders = build_contenders(size_px)
        for name, images in tqdm(draw_cases(settings.batch_size), desc=f"{size_px} px"):
            calls = {contender: partial(call, images) for contender, call in contenders.items()}
            turns = take_turns(calls, min_rounds=settings.rounds, budget_seconds=settings.budget_seconds)
            rows.append({"size, px": size_px, "images": name, **summarize(turns)})
    return rows


def summarize(turns: Turns[str]) -> dict[str, object]:
    """Return milliseconds of each contender, and how many times as fast as each of the others ours is."""
    others = [name for name in turns.seconds if name != OURS]
    return {f"{name}, ms": turns.milliseconds(name) for name in turns.seconds} | {
        f"times as fast as {name}": str(turns.times_as_fast(OURS, name)) for name in others
    }


class PreprocessingSettings(Settings):
    """What shall be timed.

    Attributes:
        sizes: Sides of the square that images are brought to, pixels.
        batch_size: Images of a batch.
        rounds: Turns of each, at least.
        budget_seconds: Seconds of further turns for each size and case.
    """

    sizes: list[Annotated[int, Field(gt=0, multiple_of=PATCH, le=RadioConfig().max_img_size)]] = [224, 512]
    batch_size: int = Field(16, gt=0)
    rounds: int = Field(MIN_ROUNDS, gt=0)
    budget_seconds: float = Field(4.0, ge=0)


COMMAND = Command("benchmarks.preprocessing", __doc__.partition("\n")[0], PreprocessingSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(lambda settings: report("preprocessing", "bicubic", measure(settings)), arguments)


if __name__ == "__main__":
    sys.exit(main())
