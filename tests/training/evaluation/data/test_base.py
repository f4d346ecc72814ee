import pytest
import torch

from training.evaluation.data import Examples, Part, Stacked, check_kind, groups_of, tensor_fingerprint


def examples(labels=None) -> Examples:
    images = torch.zeros(2, 3, 8, 4, dtype=torch.uint8)
    return Examples(Stacked(images), "a", labels=labels)


def test_what_is_known_decides_what_can_be_measured():
    assert examples().known() == {"images", "photographs"}
    assert examples(torch.tensor([0, 1])).known() == {"images", "photographs", "labels"}
    assert examples().images.size(1) == (8, 4)


def test_without_a_train_split_images_are_compared_with_each_other():
    assert Part("x", examples()).gallery is not None
    assert Part("x", examples(), examples()).fingerprint != Part("x", examples()).fingerprint


def test_a_kind_that_is_not_there():
    check_kind("mine", "labels", frozenset(["images", "labels"]))
    with pytest.raises(ValueError, match="`data` 'mine' must have masks for these tasks, got images, labels only"):
        check_kind("mine", "masks", frozenset(["images", "labels"]))


def test_a_fingerprint_is_of_every_byte():
    values = torch.zeros(10_000)
    before = tensor_fingerprint(values)
    assert tensor_fingerprint(values.clone()) == before
    values[4321] = 1e-6
    assert tensor_fingerprint(values) != before
    assert tensor_fingerprint(values.reshape(100, 100)) != tensor_fingerprint(values)
    assert tensor_fingerprint(values.bfloat16(), torch.tensor(3)) != tensor_fingerprint(values)


def test_groups_are_numbered():
    assert groups_of(["b", "a", "b"]).tolist() == [0, 1, 0]
