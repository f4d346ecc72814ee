"""Features of images as a data set: read, encoded, stored in shards, described, and searched."""
