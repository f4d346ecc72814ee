"""Studies: small paired runs that answer one question each, with their raw results."""
