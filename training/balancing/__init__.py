"""How much each teacher's losses count, step by step."""
