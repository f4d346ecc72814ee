"""What a run leaves on disk, so that it can go on: checkpoints, written beside the next steps."""
