"""Teachers that were published as checkpoints of transformers or timm."""
