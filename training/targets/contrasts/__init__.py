"""What a contrastive loss compares an image with: the step's other images, on all ranks, and earlier ones."""
