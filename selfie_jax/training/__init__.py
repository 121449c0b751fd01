"""State, step, mesh, checkpoints and monitoring of a run."""
