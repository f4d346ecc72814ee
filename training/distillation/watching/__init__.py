"""What can be seen of a run: records, measurements and pictures of held-out images."""
