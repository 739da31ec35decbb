"""A LLaMA-style decoder (arXiv 2302.13971) of 134 M parameters."""

from __future__ import annotations

from qcompiler.models.bundle import Bundle
from qcompiler.models.decoder import Shape
from qcompiler.models.decoding import prompt_bundle, step_bundle

LLAMA = Shape(
    vocabulary=32000, width=768, hidden=2048, depth=12, heads=12, kv_heads=12, positions=1024, epsilon=1e-6
)


def llama_prefill() -> Bundle:
    return prompt_bundle(LLAMA)


def llama_decode() -> Bundle:
    return step_bundle(LLAMA)
