"""What a run costs, counted before anything is loaded: operations, memory, disk, network."""
