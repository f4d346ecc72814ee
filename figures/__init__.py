"""Figures and pages: features as colors, curves, predictions on photographs."""
