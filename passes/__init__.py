"""Passes (Graph -> Graph) and analyses (Graph -> value)."""
