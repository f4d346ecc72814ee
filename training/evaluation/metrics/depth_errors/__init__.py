"""Errors of depth maps: a folder that `evaluate.load` opens, here or copied elsewhere."""
