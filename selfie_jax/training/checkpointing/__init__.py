"""Checkpoints: what is saved, when, what stays, and that what is restored is what was saved."""
