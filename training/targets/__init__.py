"""Targets of the student: teacher outputs, run online or cached, standardized (PHI-S), summaries divided by their dispersion."""
