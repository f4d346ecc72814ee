"""FeatSharp's training: views that must agree, the loop, and what the result is worth."""
