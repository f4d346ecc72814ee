"""What options at test time are worth: several looks at an image, temperatures, thresholds."""
