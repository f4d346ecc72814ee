"""Pictures of the page: colors of features, neighbors, and masks."""

import pytest
import torch

from training.evaluation.data.base import Examples, Part, Stacked
from training.evaluation.models.baselines import RawPixels
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.report.panels import (
    neighbor_section,
    overlaid,
    overlay_section,
    pca_section,
)
from training.pictures.class_colors import class_color


def images(count=3, height=40, width=60):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def test_features_of_several_models_stand_beside_the_image(tiny_model):
    models = [RadioFeatures(tiny_model, size_px=32), RawPixels(8, 40)]
    section = pca_section(models, list(images()))
    assert len(section.rows) == 3
    shown, student, pixels = section.rows[0].pictures
    assert shown.pixels.shape == (3, 40, 40)
    assert student.pixels.shape == (3, 4, 4)
    assert pixels.pixels.shape == (3, 5, 5)
    assert (student.caption, pixels.caption) == ("student", "raw pixels")
    assert student.is_grid
    assert not torch.equal(student.pixels, section.rows[1].pictures[1].pixels)


@pytest.fixture
def part():
    labels = torch.tensor([0, 1, 0, 1])
    test = Examples(Stacked(images(4)), "test", labels=labels)
    return Part("mine", test, Examples(Stacked(images(3)), "train", labels=torch.tensor([0, 1, 1])), ("cat", "dog"))


def test_neighbors_are_the_nearest_and_marked(part):
    gallery = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    tests = torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    section = neighbor_section({"a": (tests, gallery), "b": (tests.flip(1), gallery)}, part, [0, 3], num_neighbors=2)
    first, other, third, _ = section.rows
    assert [row.title for row in section.rows] == ["a, cat", "b, cat", "a, dog", "b, dog"]
    query, nearest, next_one = first.pictures
    assert torch.equal(query.pixels, part.test.images[0][:, :, 10:50])
    assert torch.equal(nearest.pixels, part.train.images[0][:, :, 10:50])
    assert (nearest.is_right, next_one.is_right, query.is_right) == (True, False, None)
    assert nearest.caption.startswith("cat, 1.00")
    assert [each.is_right for each in other.pictures[1:]] == [False, False]
    assert third.pictures[1].is_right


def test_an_image_is_not_its_own_neighbor(part):
    alone = Part("mine", part.test, None, part.class_names)
    vectors = torch.eye(4)
    section = neighbor_section({"a": (vectors, vectors)}, alone, [2], num_neighbors=9)
    assert len(section.rows[0].pictures) == 1 + 3
    assert all("0.00" in each.caption for each in section.rows[0].pictures[1:])
    grouped = Examples(part.test.images, "test", labels=part.test.labels, groups=torch.tensor([0, 1, 1, 1]))
    section = neighbor_section({"a": (vectors, vectors)}, Part("mine", grouped, None, part.class_names), [2])
    assert len(section.rows[0].pictures) == 1 + 1  # two others are of its source


def test_masks_are_mixed_into_the_image_but_where_nothing_is_known():
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    mask = torch.tensor([[0, 1], [255, 0]])
    mixed = overlaid(image, mask)
    assert mixed[:, 1, 0].tolist() == [100, 100, 100]
    assert mixed[:, 0, 0].tolist() == [round(100 * 0.45 + value * 0.55) for value in class_color(0)]
    assert not torch.equal(mixed[:, 0, 0], mixed[:, 0, 1])
    assert overlaid(image, mask, {0, 255})[:, 0, 0].tolist() == [100, 100, 100]


def test_predictions_of_several_models_stand_beside_the_truth():
    scenes, masks = images(2), torch.randint(0, 3, (2, 40, 60))
    masks[0, 0] = 255
    predictions = {"a": [masks[0].clamp(max=2), masks[1]], "b": [torch.zeros(40, 60, dtype=torch.long)] * 2}
    section = overlay_section(list(scenes), list(masks), predictions, ("ground", "cat", "dog", "never seen"))
    assert [picture.caption for picture in section.rows[0].pictures] == ["image", "true classes", "a", "b"]
    assert torch.equal(section.rows[1].pictures[1].pixels, section.rows[1].pictures[2].pixels)
    assert [name for name, _ in section.legend] == ["ground", "cat", "dog"]
    plain = overlay_section(list(scenes), list(masks), predictions, ("Background", "cat", "dog", "never seen"))
    assert [name for name, _ in plain.legend] == ["cat", "dog"]
    assert torch.equal(plain.rows[0].pictures[3].pixels, plain.rows[0].pictures[0].pixels)  # all background
