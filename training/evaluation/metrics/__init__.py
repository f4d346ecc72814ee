"""What is measured: pure functions of features."""
