"""Images and packages that exist for the demo only."""
