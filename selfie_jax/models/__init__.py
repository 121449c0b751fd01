"""Encoders and the projector."""
