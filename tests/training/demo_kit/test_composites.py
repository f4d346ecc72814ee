import pytest
import torch

from training.demo_kit.composites import MAX_OBJECTS, compose_objects, detection_set


@pytest.fixture(scope="module")
def scenes(assets):
    return detection_set(assets, 96, num_train=12, num_test=12)


def test_boxes_are_tight_around_what_is_visible(scenes):
    for scene in scenes.train + scenes.test:
        assert len(scene.boxes) == len(scene.labels) == len(scene.masks) <= MAX_OBJECTS
        for box, mask in zip(scene.boxes, scene.masks, strict=True):
            rows, cols = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            assert box.tolist() == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        assert scene.masks.sum(dim=0).max().item() <= 1 if len(scene.masks) else scene.boxes.shape == (0, 4)


def test_masks_lie_on_the_objects_of_their_class_and_split(scenes):
    """Train objects are red, held-out ones blue; a box has 64 of green or blue more than a disc."""
    for split, strong, weak in ((scenes.train, 0, 2), (scenes.test, 2, 1)):
        for scene in split:
            for label, mask in zip(scene.labels.tolist(), scene.masks, strict=True):
                pixels = scene.image[:, mask].float()
                assert pixels[strong].median() == 255
                assert pixels[weak].median() == 64 * label
    labels = torch.cat([scene.labels for scene in scenes.test])
    assert labels.unique().tolist() == [0, 1]


def test_objects_that_would_hide_others_are_left_out(assets, scenes, monkeypatch):
    monkeypatch.setattr("training.demo_kit.composites.MIN_VISIBLE_SHARE", 1.0)
    apart = detection_set(assets, 96, num_train=12, num_test=12)
    count = sum(len(scene.labels) for scene in apart.train)
    assert 0 < count < sum(len(scene.labels) for scene in scenes.train)
    for scene in apart.train:
        for box, label, mask in zip(scene.boxes, scene.labels, scene.masks, strict=True):
            if label == 1:  # a drawn box, 61 x 41 pixels, fills its bounding box where nothing hides it
                width, height = (box[2:] - box[:2]).tolist()
                assert mask.sum() == width * height
                assert width / height == pytest.approx(61 / 41, abs=0.15)


def test_scenes_are_always_the_same_ones(assets, scenes):
    again = detection_set(assets, 96, num_train=2, num_test=2)
    assert torch.equal(again.train[1].image, scenes.train[1].image)
    assert torch.equal(again.test[1].boxes, scenes.test[1].boxes)
    assert scenes.class_names == ("disc", "box")
    other = detection_set(assets, 96, num_train=2, num_test=2, draw=1)
    assert not torch.equal(other.train[1].image, scenes.train[1].image)
    assert not torch.equal(other.test[1].image, scenes.test[1].image)


def test_every_second_object_alone(assets, monkeypatch):
    banks = []

    def noted(bank, *others):
        banks.append(bank)
        return compose_objects(bank, *others)

    monkeypatch.setattr("training.demo_kit.composites.compose_objects", noted)
    detection_set(assets, 96, num_train=1, num_test=1)
    detection_set(assets, 96, num_train=1, num_test=1, every=2)
    train, test, fewer, test_again = banks
    assert fewer.objects == train.objects[::2]
    assert fewer.labels == train.labels[::2]
    assert len(fewer.objects) < len(train.objects)
    assert test_again.objects == test.objects


def test_wrong_numbers(assets):
    with pytest.raises(ValueError, match="must be positive, got 96, 0, 1 and 1"):
        detection_set(assets, 96, num_train=0, num_test=1)
