"""The gallery: photographs through one model and those tuned from it."""
