"""Starts a student from weights that are there: a RADIO folder, or a ViT of transformers or timm."""
