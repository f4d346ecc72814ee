"""Commands that show what a checkpoint has learned: a gallery, a film, a page of results."""
