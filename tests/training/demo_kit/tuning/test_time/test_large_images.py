"""Joined scenes keep what is in them where it is."""

import pytest
import torch
from torchvision.ops import box_convert, masks_to_boxes

from training.demo_kit.tuning.test_time.large_images import join_all, join_scenes


SIZE = 16


def scene(number, *corners):
    """A dark scene in which each object, left, top, right and bottom in pixels, has a light of its own."""
    image, levels = torch.zeros(3, SIZE, SIZE), []
    for index, (left, top, right, bottom) in enumerate(corners):
        levels.append(10 * number + index + 1)
        image[:, top:bottom, left:right] = levels[-1]
    boxes = box_convert(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4) / SIZE, "xyxy", "cxcywh")
    return {"pixel_values": image, "labels": {"boxes": boxes, "class_labels": torch.tensor(levels, dtype=torch.long)}}


def test_boxes_are_where_the_objects_are():
    scenes = [scene(0, (0, 0, 4, 8), (10, 2, 16, 5)), scene(1), scene(2, (3, 9, 8, 16)), scene(3, (12, 12, 16, 16))]
    joined = join_scenes(scenes)
    assert joined["pixel_values"].shape == (3, 2 * SIZE, 2 * SIZE)
    levels = joined["labels"]["class_labels"]
    assert levels.tolist() == [1, 2, 21, 31]
    found = masks_to_boxes(joined["pixel_values"][0] == levels[:, None, None]) + torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(box_convert(joined["labels"]["boxes"], "cxcywh", "xyxy") * 2 * SIZE, found)


def test_maps_are_joined_as_images_are_in_rows_of_two():
    maps = [torch.full((SIZE, SIZE), number) for number in range(4)]
    scenes = [{"pixel_values": each.expand(3, -1, -1).float(), "labels": each} for each in maps]
    joined = join_scenes(scenes)
    assert joined["labels"][::SIZE, ::SIZE].tolist() == [[0, 1], [2, 3]]
    assert torch.equal(joined["pixel_values"][0], joined["labels"].float())


def test_what_makes_no_four_is_left_over():
    scenes = [scene(number, (0, 0, 4, 4)) for number in range(7)]
    (joined,) = join_all(scenes)
    assert joined["labels"]["class_labels"].tolist() == [1, 11, 21, 31]
    with pytest.raises(ValueError, match="`scenes` must be 4, got 3"):
        join_scenes(scenes[4:])
