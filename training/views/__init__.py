"""Views of images for student and teachers: batches, resolutions, crops."""
