"""One file for each task: how its data is read, scored and drawn."""
