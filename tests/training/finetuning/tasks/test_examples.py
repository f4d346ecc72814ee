"""Rows become model inputs by number or in order, and augmentation repeats itself."""

from itertools import islice

import pytest
import torch
from datasets import Dataset
from tiny_tuning import build_task, load, picture, save_shards
from torchvision import tv_tensors

from training.data.labeled.tables import read_row
from training.finetuning.tasks.base import Examples, StreamedExamples
from training.finetuning.tasks.classification import ClassificationTask


@pytest.fixture
def task():
    return build_task(ClassificationTask, "image-classification")


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


def test_augmentation_depends_on_seed_epoch_and_index_alone(task):
    rows = Dataset.from_list([{"image": picture(), "target": 1}] * 3)

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


def test_of_a_stream_too(task, tmp_path):
    images = load(save_shards(tmp_path / "shards"), "image-classification", **STREAMED)

    def draw(seed=0, count=12):
        examples = StreamedExamples(images.stream, task, RandomShift(), seed, "image")
        return [(example["pixel_values"].sum().item(), int(example["labels"])) for example in islice(examples, count)]

    assert draw() == draw()
    assert draw(seed=1) != draw()
    assert [label for _, label in draw(seed=1)] == [label for _, label in draw()], "the order is the stream's"
    shifts = {round(pixels, 3) for pixels, _ in draw(count=24)}
    assert len(shifts) == 24, "an image is shifted otherwise in its second pass"


STREAMED = {"streaming": True, "steps": 2, "evaluate_every": 2, "classes": ("even", "odd")}
