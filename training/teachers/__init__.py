"""The teachers: frozen networks that answer with a summary and dense features."""
