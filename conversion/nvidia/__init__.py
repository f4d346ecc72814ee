"""NVIDIA's two file formats: read, checked, and translated to our configuration and keys."""
