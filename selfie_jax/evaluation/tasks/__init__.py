"""Labelled tasks: which clips, which labels, which of them are train, valid and test."""
