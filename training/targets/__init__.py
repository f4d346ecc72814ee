"""Targets of the student: teacher outputs, run online or cached, standardized (PHI-S) and balanced."""
