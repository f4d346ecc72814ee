"""Tiny checkpoints and photographs."""

from tiny_checkpoints import opened, photograph, picture, save_tuned, texts


__all__ = ["opened", "photograph", "picture", "save_tuned", "texts"]
