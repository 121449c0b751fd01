"""Representations of a task's clips: shared out over processes, and kept for the next time."""
