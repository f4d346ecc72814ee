"""The ways to run a teacher: what it takes in of an image, and how that becomes an answer."""
