"""Images of any mode are read, and augmentation repeats itself."""

import pytest
import torch
from tiny_tuning import build_task, load, picture
from torchvision import tv_tensors

from training.finetuning.tasks.base import Examples, read_row, require_same_size
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


def test_a_file_that_breaks_off_is_named(class_folders):
    path = class_folders / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:2000])
    rows = load(class_folders, "image-classification", validation_share=0.2)
    tables = ((rows.train, "training image"), (rows.validation, "validation image"))
    broken = [
        (table, number, name) for table, name in tables for number in range(len(table)) if is_broken(table, number)
    ]
    ((table, number, name),) = broken
    with pytest.raises(ValueError, match=rf"of {name} {number} \({path}\) cannot be decoded: .*truncated\. Replace"):
        read_row(table, number, name)


def is_broken(table, number):
    try:
        table[number]
    except OSError:
        return True
    return False


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


def test_augmentation_depends_on_seed_epoch_and_index_alone(task):
    rows = [{"image": picture(), "target": 1}] * 3

    def draw(index, seed=0, epoch=0):
        examples = Examples(rows, task, RandomShift(), seed, "image")
        examples.epoch = epoch
        return examples[index]["pixel_values"].sum().item()

    before = torch.get_rng_state()
    assert draw(0) == draw(0)
    assert len({draw(0), draw(1), draw(0, seed=1), draw(0, epoch=1)}) == 4
    assert torch.equal(torch.get_rng_state(), before)


class RandomShift(torch.nn.Module):
    def forward(self, sample):
        return {**sample, "image": tv_tensors.Image(sample["image"] / 255 + torch.rand(1))}
