"""Adaptive balancing of teachers: weights of their losses, and the contrastive term."""
