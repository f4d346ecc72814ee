"""Auxiliary heads: they read blocks within the trunk (taps) and are dropped after training."""
