"""Losses between student and teachers: pure functions of tensors."""
