"""Optimisers of torch whose states take one byte per number instead of four."""

from qcompiler.optim.adam import Adam8bit, AdamW8bit
from qcompiler.optim.sgd import SGD8bit

__all__ = ["Adam8bit", "AdamW8bit", "SGD8bit"]
