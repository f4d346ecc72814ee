"""Fixtures of all tests of `training`."""

from training_fixtures import _own_accelerator, recipe_file, tiny_world, write_source
from tuning_fixtures import base, class_folders, one_picture, own_datasets_cache


__all__ = [
    "_own_accelerator",
    "base",
    "class_folders",
    "one_picture",
    "own_datasets_cache",
    "recipe_file",
    "tiny_world",
    "write_source",
]
