"""Trains FeatSharp, which makes a frozen teacher's features finer."""
