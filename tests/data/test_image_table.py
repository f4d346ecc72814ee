from collections.abc import Sequence

import pytest
import torch
from training_fixtures import encode

from modeling_radio.data.decoding import EncodedImage
from modeling_radio.data.image_table import ImageTable


def table(contents: Sequence[bytes], **options) -> ImageTable:
    return ImageTable([EncodedImage(f"image {number}", content) for number, content in enumerate(contents)], **options)


def test_images_are_whole_unless_a_size_is_given() -> None:
    images = table([encode(7), encode(9)])
    assert (len(images), images[1].shape, images[1].dtype) == (2, (3, 36, 48), torch.uint8)
    assert images[1].unique().tolist() == [9]
    for index in (-1, 2):
        with pytest.raises(IndexError, match="`index`"):
            images[index]
