"""One HTML page that shows what the numbers mean, and asks nothing of any server."""
