"""The joint graph of a training step: its products, what crosses from forward to backward, and its memory."""
