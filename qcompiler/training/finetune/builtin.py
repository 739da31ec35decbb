"""The trainings that come along: small models, and text that every Python has. A new one is a new row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qcompiler.progress import Tell
from qcompiler.training.finetune.bert import bert
from qcompiler.training.finetune.llama import llama
from qcompiler.training.finetune.task import Task


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A task and its defaults. build: (batch, seed, steps in float before, tell) -> Task; of None, its own.

    memory: the fewest bits that pass the check of the first step on weights that are trained.
    """

    description: str
    build: Callable[[int, int, int | None, Tell], Task]
    memory: str = "act4"
    batch: int = 16
    rate: float = 1e-3


BUILT_IN: Mapping[str, BuiltIn] = {
    "bert": BuiltIn(description="a BERT-like encoder that colours Python source", build=bert),
    # Rounding to 4 bits what attention exponentiates is 0.6 of its gradient once it looks somewhere.
    "llama": BuiltIn(
        description="a LLaMA-like decoder that reads asyncio", build=llama, memory="act8", rate=2e-3
    ),
}
