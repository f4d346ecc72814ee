"""Tasks: one file for each group, and the table of their names."""
