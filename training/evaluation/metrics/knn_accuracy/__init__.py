"""Weighted kNN accuracy: a folder that `evaluate.load` opens, here or copied elsewhere."""
