"""The demo: its packages, images, words and closing page."""
