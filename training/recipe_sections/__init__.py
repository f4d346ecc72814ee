"""The sections of a recipe: every setting, with its type, its rule and what it does."""
