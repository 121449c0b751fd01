"""Builds the study's data: labelled tasks and clips to pre-train on, from public packages; see `__main__.py`."""
