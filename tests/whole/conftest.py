"""Fixtures of the tests that span files."""

from tiny_folders import model, pictures, words


__all__ = ["model", "pictures", "words"]
