"""Fixtures of the tests that span files."""

__all__ = [
    *("_own_accelerator", "base", "class_folders", "coco_content", "coco_folder", "depth_folder", "model"),
    *("one_picture", "outlines_folder", "own_datasets_cache", "pictures", "recipe_file", "tiny_world", "voc_folder"),
    *("words", "write_source", "zero_shot_folder"),
]
