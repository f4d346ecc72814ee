"""Checks of a folder before others see it, and the requests that bring it to the Hub."""
