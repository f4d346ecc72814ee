"""Images that filters tell apart: smooth random ones, of which there are copies, and faulty ones."""

import io

import numpy as np
from PIL import Image

from modeling_radio.data.decoding import EncodedImage


def picture(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth image of many colors, the same of one seed whatever its size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def flat(color: int, width: int = 96, height: int = 64) -> Image.Image:
    """An image of nearly one color."""
    noise = np.random.default_rng(color).integers(-1, 2, (height, width, 3))
    return Image.fromarray((color + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return EncodedImage("an image", buffer.getvalue())


class Rows:
    """Encoded images by number, which count how often one is asked for."""

    def __init__(self, images: list[EncodedImage]) -> None:
        self.images, self.num_read = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> EncodedImage:
        self.num_read += 1
        return self.images[index]

    def fingerprint(self) -> str:
        return f"rows of {sum(len(bytes(image.content)) for image in self.images)} bytes"
