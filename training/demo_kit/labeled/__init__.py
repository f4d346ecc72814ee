"""Labeled data sets made of what packages hold: as folders in the usual layouts, and the sets of whole packages."""
