"""The table of models. A new model is a new file and a new row."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Literal, NamedTuple, cast

from qcompiler.models.bundle import Bundle


class Entry(NamedTuple):
    """One row: where the builder is, what it builds, and where the weights come from."""

    builder: str
    description: str
    weights: Literal["trained", "random"]

    def __str__(self) -> str:
        return f"{self.description} ({self.weights} weights)"


MODELS: dict[str, Entry] = {
    "lenet": Entry(
        "qcompiler.models.lenet:lenet", "LeNet-style network for 8x8 handwritten digits", "trained"
    ),
    "resnet18": Entry("qcompiler.models.resnet:resnet18", "ResNet-18, 224x224, 1000 classes", "random"),
    "resnet50": Entry("qcompiler.models.resnet:resnet50", "ResNet-50 v1.5, 224x224, 1000 classes", "random"),
    "mobilenetv2": Entry(
        "qcompiler.models.mobilenetv2:mobilenetv2", "MobileNetV2 1.0, 224x224, 1000 classes", "random"
    ),
    "vit_b_32": Entry(
        "qcompiler.models.vit:vit_b_32", "ViT-B with 32x32 patches, 224x224, 1000 classes", "random"
    ),
    "bert_base": Entry(
        "qcompiler.models.bert:bert_base", "BERT-base encoder without pooler, 128 tokens", "random"
    ),
    "llama_prefill": Entry(
        "qcompiler.models.llama:llama_prefill", "LLaMA-style decoder, 134 M, a prompt of 128 tokens", "random"
    ),
    "llama_decode": Entry(
        "qcompiler.models.llama:llama_decode", "LLaMA-style decoder, 134 M, one token after 128", "random"
    ),
    "gpt2": Entry("qcompiler.models.gpt2:gpt2", "GPT-2 small, one token after 128", "random"),
}


def names() -> tuple[str, ...]:
    """Every model that `build` knows, in the order of the table."""
    return tuple(MODELS)


def describe(name: str) -> Entry:
    """The row of a model; its `str` is one line to show."""
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}; choose one of {', '.join(MODELS)}.")
    return MODELS[name]


def build(name: str) -> Bundle:
    """Build a model with its data: the same each time, and without touching the global random state."""
    builder = cast(Callable[[], Bundle], resolve_name(describe(name).builder))
    return builder()
