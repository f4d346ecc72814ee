"""Notebooks that teach, scripts that travel alone, and what stores the notebooks' outputs."""
