"""Labeled data: where it comes from, how it is laid out, augmented."""
