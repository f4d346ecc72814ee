"""Recipes: one YAML file each, and the settings that they may have."""
