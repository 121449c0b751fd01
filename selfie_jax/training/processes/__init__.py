"""The processes of a run: finding each other, waiting for each other, and ending together."""
