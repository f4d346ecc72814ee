"""Drawings of features and curves."""
