"""Labeled folders and a tiny backbone; every test has a cache of its own, and draws little."""

import pytest
from tuning_fixtures import (
    base,
    class_folders,
    coco_content,
    coco_folder,
    depth_folder,
    one_picture,
    outlines_folder,
    own_datasets_cache,
    voc_folder,
)


__all__ = [
    "base",
    "class_folders",
    "coco_content",
    "coco_folder",
    "depth_folder",
    "one_picture",
    "outlines_folder",
    "own_datasets_cache",
    "voc_folder",
]


@pytest.fixture(autouse=True)
def _short_and_apart(own_datasets_cache, one_picture) -> None:
    pass
