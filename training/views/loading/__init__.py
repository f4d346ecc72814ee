"""What loads what is seen of images: by number, or of streams."""
