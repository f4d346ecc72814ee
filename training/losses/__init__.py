"""Losses between student and teachers: pure functions of tensors, and the weights of teachers."""
