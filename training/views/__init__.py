"""What student and teachers see of an image: batches, resolutions, crops."""
