"""Words for a student whose teacher knows names of classes: from the rows of its classifier to a text tower."""
