"""Labeled images in any form: where they lie, how they are laid out, and what their labels stand for."""
