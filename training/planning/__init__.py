"""Cost of a run, counted before anything is loaded: operations, memory, disk, network."""
