"""Programs that measure speed and memory beside the peers, side by side in one run."""
