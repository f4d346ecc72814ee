"""Validation images of each class, of one class or several an image."""

import pytest

from modeling_radio.training.finetuning.split import split_images


def held_out(classes, share, seed=0):
    train, validation = split_images(classes, share, seed)
    assert sorted(train + validation) == list(range(len(classes)))
    assert (train, validation) == (sorted(train), sorted(validation))
    return [classes[index] for index in validation]


@pytest.mark.parametrize("seed", range(6))
def test_each_class_has_its_share_and_at_least_one_image(seed):
    classes = [["circle"]] * 20 + [["square"]] * 20 + [["rare"]] * 2 + [["alone"]] + [[]] * 10
    names = [name for image in held_out(classes, 0.1, seed) for name in image or ["none"]]
    assert {name: names.count(name) for name in set(names)} == {"circle": 2, "square": 2, "rare": 1, "none": 1}


@pytest.mark.parametrize("seed", range(6))
def test_of_several_classes_an_image_none_loses_its_last_training_image(seed):
    classes = [["a"]] * 8 + [["a", "b"], ["b", "c"], ["c", "a"], ["c", "c"]]
    train, validation = split_images(classes, 0.25, seed)
    for images in (train, validation):
        assert {name for index in images for name in classes[index]} == {"a", "b", "c"}
    assert len(validation) <= 4


def test_the_seed_decides_and_images_without_classes_are_drawn():
    drawn = [split_images([()] * 30, 0.1, seed)[1] for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(drawn[0]) == 3
    with pytest.raises(ValueError, match="no two of one class"):
        split_images([["a"], ["b"]], 0.5, 0)
