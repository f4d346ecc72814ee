"""Accuracy and balanced accuracy: a folder that `evaluate.load` opens, here or copied elsewhere."""
