"""Distillation, evaluation and tuning of RADIO students; run with `radio COMMAND`."""
