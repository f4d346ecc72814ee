"""Targets of the student: outputs of teachers, run online or cached, and their standardization (PHI-S)."""
