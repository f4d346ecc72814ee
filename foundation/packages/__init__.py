"""Pinned packages of PyPI, npm and Debian: fetched by their own clients, checked, unpacked; no code of them runs."""
