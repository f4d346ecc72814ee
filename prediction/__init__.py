"""Answers of tuned models for folders and streams of images: `radio predict`."""
