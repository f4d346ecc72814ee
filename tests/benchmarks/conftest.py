"""Fixtures of the benchmarks' tests."""

from training_fixtures import _own_accelerator, recipe_file, tiny_world


__all__ = ["_own_accelerator", "recipe_file", "tiny_world"]
