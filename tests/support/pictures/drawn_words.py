"""Labeled images whose classes have names that the tests' sentence encoder knows."""

import torch

from training.demo_kit.assets import DemoAssets
from training.demo_kit.evaluation_sets import ClassificationSet, SegmentationSet
from training.evaluation.data.demo import DemoData


SIZE_PX = 64
COLORS = torch.tensor([[120, 120, 120], [250, 20, 20], [20, 250, 20]], dtype=torch.uint8)


def draw_data() -> DemoData:
    """Return gray, red and green objects, and scenes with a red or a green right half on gray."""
    labels = torch.tensor([0, 1, 2] * 4)
    masks = torch.zeros(4, SIZE_PX, SIZE_PX, dtype=torch.long)
    masks[:2, :, SIZE_PX // 2 :] = 1
    masks[2:, :, SIZE_PX // 2 :] = 2
    scenes = COLORS[masks].movedim(-1, 1).contiguous()
    objects = COLORS[labels][:, :, None, None].expand(-1, -1, SIZE_PX, SIZE_PX).contiguous()
    return DemoData(
        "toy",
        DemoAssets((), (), (), ("grass", "cat", "dog"), (), ""),
        ClassificationSet(objects, labels, objects, labels, ("grass", "cat", "dog")),
        SegmentationSet(scenes, masks, scenes, masks, ("background", "cat", "dog")),
        objects,
    )
