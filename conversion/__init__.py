"""Other people's checkpoints to ours and back, and exports."""
