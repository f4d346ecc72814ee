"""Hooks that act on each step of a run: their protocol, and those of the student."""
