"""Teacher features computed once: their formats, their files, what they were made from."""
