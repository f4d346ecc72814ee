import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from training_fixtures import encode, encode_faulty

from modeling_radio.training.data.decoding import EncodedImage
from modeling_radio.training.data.image_table import ImageTable


def table(contents: Sequence[bytes], **options) -> ImageTable:
    return ImageTable([EncodedImage(f"image {number}", content) for number, content in enumerate(contents)], **options)


def noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_are_whole_unless_a_size_is_given() -> None:
    images = table([encode(7), encode(9)])
    assert (len(images), images[1].shape, images[1].dtype) == (2, (3, 36, 48), torch.uint8)
    assert images[1].unique().tolist() == [9]
    for index in (-1, 2):
        with pytest.raises(IndexError, match="`index`"):
            images[index]


def test_a_crop_depends_on_seed_and_index_alone() -> None:
    contents = [noise(number) for number in range(3)]
    images, again = (table(contents, size=16, num_images=6, seed=1) for _ in range(2))
    assert len(images) == 6
    assert all(torch.equal(images[index], again[index]) for index in (5, 0, 3))
    assert not torch.equal(images[0], images[3])  # the same row again, cropped differently
    assert not torch.equal(images[0], table(contents, size=16, seed=2)[0])
    centered = table(contents, size=16, num_images=6, is_centered=True)
    assert torch.equal(centered[0], centered[3])


def test_an_unusable_image_is_replaced_by_the_next_and_counted_once() -> None:
    images = table([encode(1), encode_faulty("truncated"), encode(3)])
    assert [images[index].unique().tolist() for index in (0, 1, 2, 1)] == [[1], [3], [3], [3]]
    assert len(images.skipped) == 1
