"""Targets that are the same on every machine that tests run on."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.target import ONNX_RUNTIME_CPU

FULL_CODES = replace(ONNX_RUNTIME_CPU, weight_limit=None)
"""A CPU whose sums hold all codes of 8 bits, whether this one has the instructions for it or not."""
