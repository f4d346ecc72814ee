"""What keeps the student's training stable: weight noise and spectral scales."""
