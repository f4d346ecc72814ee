"""Evaluation of frozen features: kNN, probes, fidelity to teachers, zero-shot, consistency over resolutions."""
