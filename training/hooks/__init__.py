"""What acts on each step of a run: the protocol, and the hooks of the student."""
