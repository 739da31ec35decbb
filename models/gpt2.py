"""GPT-2 small, 124 M parameters; its head is its embedding."""

from __future__ import annotations

from qcompiler.models.bundle import Bundle
from qcompiler.models.decoder import Shape
from qcompiler.models.decoding import step_bundle

GPT2 = Shape(
    vocabulary=50257, width=768, hidden=3072, depth=12, heads=12, kv_heads=12, positions=1024,
    family="gpt2", tied=True,
)  # fmt: skip


def gpt2() -> Bundle:
    return step_bundle(GPT2)
