"""Crops that are turned, zoomed and tilted, and how they lie."""
