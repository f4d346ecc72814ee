"""Optimizers of the student, and which of its parameters each of them moves how."""
