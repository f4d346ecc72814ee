"""How features move with the image, and what of them does not: fixed patterns, shifts, resolutions, positions."""
