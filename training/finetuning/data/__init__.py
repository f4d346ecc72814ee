"""Labeled images: where they come from, how they are laid out, labeled and augmented."""
