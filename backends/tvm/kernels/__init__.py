"""Families of layers, each a template with a small space of schedules."""
