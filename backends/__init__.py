"""Backends: how a quantized graph is executed. Heavy packages are imported at first use."""
