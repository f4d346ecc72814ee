"""Which images are not worth training on: too small, too narrow, of one color, or seen before."""
