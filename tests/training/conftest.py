"""Fixtures of all tests of `training`."""

from training_fixtures import _own_accelerator, recipe_file, tiny_world, write_source
from tuning_fixtures import (
    base,
    class_folders,
    coco_content,
    coco_folder,
    depth_folder,
    one_figure_image,
    outlines_folder,
    own_datasets_cache,
    voc_folder,
    zero_shot_folder,
)


__all__ = [
    "_own_accelerator",
    "base",
    "class_folders",
    "coco_content",
    "coco_folder",
    "depth_folder",
    "one_figure_image",
    "outlines_folder",
    "own_datasets_cache",
    "recipe_file",
    "tiny_world",
    "voc_folder",
    "write_source",
    "zero_shot_folder",
]
