"""Networks that are timed beside each other: ours in several ways, and peers with random weights in equal shapes."""
