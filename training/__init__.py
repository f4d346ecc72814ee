"""Distillation, evaluation and tuning of RADIO students; run with `python -m training.<command>`."""
