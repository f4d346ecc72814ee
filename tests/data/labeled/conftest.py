"""Every test has a cache of its own, and draws little."""

from tuning_fixtures import _short_and_apart


__all__ = ["_short_and_apart"]
