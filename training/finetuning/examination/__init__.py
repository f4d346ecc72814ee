"""What a validation set says of a tuned model beyond its metrics: where it errs, what its probabilities are worth."""
