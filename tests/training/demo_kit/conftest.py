"""Drawn assets instead of fetched ones, and a tiny student."""

from drawn_assets import assets
from tuning_fixtures import student


__all__ = ["assets", "student"]
