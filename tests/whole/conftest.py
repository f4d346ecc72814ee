"""Fixtures of the tests that span files."""

from training_fixtures import _own_accelerator, recipe_file, tiny_world, write_source


__all__ = ["_own_accelerator", "recipe_file", "tiny_world", "write_source"]
