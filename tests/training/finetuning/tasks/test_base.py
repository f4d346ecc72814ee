"""Images of any mode are read, and examples joined."""

import pytest
import torch
from tiny_tuning import build_task, picture
from torchvision import tv_tensors

from training.finetuning.tasks.base import require_same_size
from training.finetuning.tasks.classification import ClassificationTask


@pytest.fixture
def task():
    return build_task(ClassificationTask, "image-classification")


def test_images_of_any_mode_become_rgb(task):
    for mode in ("L", "RGBA", "P", "I;16"):
        image = task.read_image(picture().convert("L").convert(mode), "image 0")
        assert isinstance(image, tv_tensors.Image)
        assert (image.shape, image.dtype) == ((3, 36, 48), torch.uint8)


def test_what_is_no_image_is_named(task):
    with pytest.raises(ValueError, match="The image of image 7 cannot be read: "):
        task.read_image("nothing.png", "image 7")


def test_examples_are_joined(task):
    examples = [
        {"pixel_values": torch.full((3, 2, 2), float(number)), "labels": torch.tensor(number)} for number in (1, 2)
    ]
    batch = task.collate(examples)
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["labels"].tolist() == [1, 2]


def test_maps_are_as_large_as_their_images():
    require_same_size(torch.zeros(3, 4, 6), torch.zeros(4, 6), "image 7", "mask")
    with pytest.raises(
        ValueError, match=r"The mask of image 7 has 6 x 4 pixels but its image 4 x 6 \(height x width\)"
    ):
        require_same_size(torch.zeros(3, 4, 6), torch.zeros(6, 4), "image 7", "mask")
