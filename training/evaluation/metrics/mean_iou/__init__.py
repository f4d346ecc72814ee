"""Mean intersection over union: a folder that `evaluate.load` opens, here or copied elsewhere."""
