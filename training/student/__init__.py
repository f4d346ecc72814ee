"""The network that learns: built, warm-started, regularized, averaged, exported."""
