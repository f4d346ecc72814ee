"""Teachers: frozen networks with a summary and dense features."""
