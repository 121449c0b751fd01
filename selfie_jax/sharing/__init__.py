"""Giving an encoder away, and taking one in: a weights file with a model card, exported programs, PyTorch weights."""
