"""Studies: small runs that differ in one thing, with paired seeds, and what can be concluded from them."""
