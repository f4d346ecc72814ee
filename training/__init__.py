"""Distillation of RADIO students: `radio distill`, `radio plan` and `radio upsampler`."""
