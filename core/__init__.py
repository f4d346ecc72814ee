"""Shared by all commands: settings, whole files, errors, ranks, seeds, tables, timing, trust in folders."""
