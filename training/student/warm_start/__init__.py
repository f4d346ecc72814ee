"""Start of a student from existing weights: a RADIO folder, or a ViT of transformers or timm."""
