"""Drawn assets instead of fetched ones."""

from drawn_assets import assets


__all__ = ["assets"]
