"""Compiled programs: kept for the next start, and read before there is a machine to run them."""
