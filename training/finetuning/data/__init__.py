"""Labeled images for tuning: which columns and splits are taken, and how images are augmented."""
