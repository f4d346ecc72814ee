"""Images of any mode, evidence that joins, and examples whose augmentation repeats itself."""

from itertools import islice

import pytest
import torch
from datasets import ClassLabel, Dataset, load_from_disk
from PIL import Image
from tiny_tuning import build_task, load, picture, save_labels, save_shards
from torchvision import tv_tensors

from modeling_radio.data.labeled.tables import read_row
from modeling_radio.tuning.tasks.base import (
    Ranking,
    StreamedExamples,
    TableExamples,
    build_examples,
    count_confusion,
    rank_classes,
)
from modeling_radio.tuning.tasks.classification import ClassificationTask


@pytest.fixture
def task():
    return build_task(ClassificationTask, "image-classification")


def test_images_that_cannot_be_read_are_named(task, class_folders):
    with pytest.raises(ValueError, match="image 7"):
        task.read_image("nothing.png", "image 7")
    floats = class_folders.parent / "floats.tif"
    Image.new("F", (8, 8), 0.5).save(floats)
    with Image.open(floats) as image, pytest.raises(ValueError, match=rf"image 8 \({floats}\).* 8 or 16 bits"):
        task.read_image(image, "image 8")
    path = class_folders / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:2000])
    rows = load(class_folders, "image-classification", validation_share=0.2)
    rows = [(table, number) for table in (rows.train, rows.validation) for number in range(len(table))]
    with pytest.raises(ValueError, match=rf"image \d \({path}\)"):
        [read_row(table, number, "image") for table, number in rows]


def test_rankings_and_confusions_by_hand():
    hits = torch.tensor([True, True, True, False])
    ranking = Ranking(torch.tensor([1, 0, 1, 1]), torch.tensor([0.2, 0.9, 0.7, 0.5]), hits, torch.tensor([1, 2]))
    scores, hits = ranking.of_class(1)
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.5, 0.2], dtype=torch.double))
    assert hits.tolist() == [1, 1, 2]
    ranking = rank_classes(torch.tensor([[0.1, 0.6, 0.3]]), torch.tensor([[1, 0, 0]]), most=2)
    assert (ranking.classes.tolist(), ranking.hits.tolist()) == ([1, 2], [False, False])
    assert ranking.num_truths.tolist() == [1, 0, 0]  # which is missed
    found = count_confusion(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 2]]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


class RandomShift(torch.nn.Module):
    def forward(self, sample):
        return {**sample, "image": tv_tensors.Image(sample["image"] / 255 + torch.rand(1))}


def test_augmentation_depends_on_seed_epoch_and_index_alone(task):
    rows = Dataset.from_list([{"image": picture(), "target": 1}] * 3)

    def draw(index, seed=0, epoch=0):
        examples = TableExamples(rows, task, RandomShift(), seed, "image")
        examples.epoch = epoch
        return examples[index]["pixel_values"].sum().item()

    before = torch.get_rng_state()
    assert draw(0) == draw(0)
    assert len({draw(0), draw(1), draw(0, seed=1), draw(0, epoch=1)}) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_of_a_stream_repeats_itself(task, tmp_path):
    options = {"streaming": True, "steps": 2, "evaluate_every": 2, "classes": ("even", "odd")}
    images = load(save_shards(tmp_path / "shards"), "image-classification", **options)

    def draw(seed=0, count=12):
        examples = StreamedExamples(images.stream, task, RandomShift(), seed, "image")
        return [(example["pixel_values"].sum().item(), int(example["labels"])) for example in islice(examples, count)]

    assert draw() == draw()
    assert draw(seed=1) != draw()
    assert [label for _, label in draw(seed=1)] == [label for _, label in draw()], "the order is the stream's"
    shifts = {round(pixels, 3) for pixels, _ in draw(count=24)}
    assert len(shifts) == 24, "an image is shifted differently in its second pass"


def test_a_sampler_draws_anew_each_epoch(tmp_path):
    rows = load_from_disk(save_labels(tmp_path / "rows", ClassLabel(names=["cat", "dog"]), [0] * 8 + [1] * 2))
    rows = rows.rename_column("label", "target")
    plain, sampled = (
        build_examples(
            build_task(ClassificationTask, "image-classification", ("cat", "dog"), rows, **options), is_training=True
        )
        for options in ({}, {"sampler": "balanced"})
    )
    assert [plain.row_of(index) for index in range(10)] == list(range(10))
    assert len(sampled) == 10
    first = [sampled.row_of(index) for index in range(10)]
    assert 4 <= sum(row >= 8 for row in first) <= 6
    assert [int(sampled[index]["labels"]) for index in range(10)] == [int(row >= 8) for row in first]
    sampled.epoch = 1
    assert [sampled.row_of(index) for index in range(10)] != first
    sampled.epoch = 0
    assert [sampled.row_of(index) for index in range(10)] == first
