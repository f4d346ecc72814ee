"""Mean cosines of features: a folder that `evaluate.load` opens, here or copied elsewhere."""
