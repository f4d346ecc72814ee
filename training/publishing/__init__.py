"""What a folder must be before strangers see it, and the few requests that bring it to the Hub."""
