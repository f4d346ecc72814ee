"""Adapters to public harnesses, whose packages come with no extra: `pip install mteb`, `pip install clip-benchmark`."""
