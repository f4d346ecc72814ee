"""Hooks of the founding article: adaptive weights of the teachers' losses, and the contrastive loss."""
