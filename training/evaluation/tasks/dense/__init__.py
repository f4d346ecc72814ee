"""Tasks on dense features: what every patch is, how far away, and where again."""
