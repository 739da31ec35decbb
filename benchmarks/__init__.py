"""Measurements: each command is a module here, run from the top of a checkout."""
