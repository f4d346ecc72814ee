"""Runs NVIDIA's own code and ours on the same images, each in a process of its own."""
