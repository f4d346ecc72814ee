"""Fixtures of the tests that span files."""

from tiny_folders import model, pictures, words
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


# fmt: off
__all__ = [
    "_own_accelerator", "base", "class_folders", "coco_content", "coco_folder", "depth_folder", "model",
    "one_figure_image", "outlines_folder", "own_datasets_cache", "pictures", "recipe_file", "tiny_world", "voc_folder",
    "words", "write_source", "zero_shot_folder",
]
# fmt: on
