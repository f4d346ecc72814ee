"""JPEGs decoded on the device that the run is on, and what is seen of them cut out there."""
