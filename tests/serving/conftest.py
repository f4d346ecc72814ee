"""Tiny task models."""

from tiny_checkpoints import save_tuned, texts


__all__ = ["save_tuned", "texts"]
