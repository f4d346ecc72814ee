"""Effective rank: a folder that `evaluate.load` opens, here or copied elsewhere."""
