"""What student and teachers are compared by: pure functions of tensors."""
