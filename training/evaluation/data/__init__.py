"""Images to measure on: any labeled source and the demo's sets, behind one protocol."""
