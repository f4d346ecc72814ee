"""Sections of a recipe that fill a file of their own; `training/recipe.py` has the others and the whole."""
