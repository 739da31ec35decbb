"""Stored activations: ns an element to store and to recall, and what a training step of a block pays for it.

    python -m benchmarks.storage [--rounds 15] [--out benchmarks/results/storage.json]

Store and recall of 2^20 elements by the reference and by the kernels of this CPU, and a step, forward and
backward, of a pre-norm transformer block on 8 x 128 tokens by torch alone and with activations in 8, 4 and 2
bits. One thread, all of a table interleaved, CPU time, medians; a step counts as the median of the ratios of
its rounds. Writes JSON and Markdown.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.records import commit, machine, table, versions, write_down
from benchmarks.subjects import block
from qcompiler.backends.tvm.training import install
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.philox import noise_key
from qcompiler.training import Training
from qcompiler.tune.measure import interleave

BITS = (8, 4, 2)
TYPES = (torch.float32, torch.bfloat16)
COUNT = 1 << 20
WIDTHS = (256, 768)
BATCH, TOKENS = 8, 128
KEY = noise_key(0)
Run = Callable[[], object]


def by_reference(operator: Any, *given: Any) -> None:
    with operator.set_kernel_enabled("cpu", False):
        operator(*given)


def elements(dtype: torch.dtype, bits: int, rounds: int) -> dict[str, Any]:
    """ns an element."""
    x = torch.randn(COUNT).to(dtype)
    given = {
        store: (x, KEY, 0, bits),
        recall: (*store(x, KEY, 0, bits), bits, list(x.shape), list(x.stride()), dtype),
    }
    runs: dict[str, Run] = {}
    for operator, arguments in given.items():
        runs[f"{operator._name} reference"] = partial(by_reference, operator, *arguments)
        runs[f"{operator._name} kernel"] = partial(operator, *arguments)
    timing = interleave(runs, rounds=rounds)
    return {
        "dtype": str(dtype).removeprefix("torch."), "bits": bits,
        "ns": {name.removeprefix("qcompiler::"): timing.median(name) / COUNT * 1e9 for name in runs},
    }  # fmt: skip


def step(model: nn.Module, run: Callable[..., Tensor], x: Tensor) -> None:
    model.zero_grad()
    torch.autograd.backward(run(x).square().mean())


def steps(width: int, rounds: int) -> dict[str, Any]:
    """ms a step, and how much longer than torch's."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = block(width), torch.randn(BATCH, TOKENS, width)
    runs: dict[str, Run] = {"torch": partial(step, model, model, x)}
    stored = {}
    for memory in ("keep", *(f"act{bits}" for bits in BITS)):
        training = Training(memory=memory)
        runs[memory] = partial(step, model, torch.compile(model, backend=training, dynamic=False), x)
        runs[memory]()
        stored[memory] = sum(
            value.count for piece in training.pieces for value in piece.saved if value.name in piece.bits
        )
    timing = interleave(runs, rounds=rounds)
    return {
        "width": width, "ms": {name: timing.median(name) * 1e3 for name in runs},
        "more": {name: timing.ratio(name, "torch") - 1 for name in runs}, "stored": stored,
    }  # fmt: skip


def page(result: dict[str, Any]) -> str:
    kinds = [f"{operator} {by}" for operator in ("store", "recall") for by in ("reference", "kernel")]
    elements = [
        (case["dtype"], str(case["bits"]), *(f"{case['ns'][kind]:.2f} ns" for kind in kinds))
        for case in result["elements"]
    ]
    memories = list(result["steps"][0]["ms"])
    blocks = [
        (str(case["width"]), f"{case['stored']['act4'] / 1e6:.1f} M", f"{case['ms']['torch']:.1f} ms",
         *(f"{case['ms'][name]:.1f} ms, {case['more'][name]:+.1%}" for name in memories[1:]))
        for case in result["steps"]
    ]  # fmt: skip
    return "\n".join([
        table(("type", "bits", *kinds), elements),
        table(("width of the block", "elements stored", *memories), blocks),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/storage.json"))
    given = parser.parse_args()
    at = commit()
    torch.set_num_threads(1)
    install()
    forms = [(dtype, bits) for dtype in TYPES for bits in BITS]
    result = {
        "commit": at, **machine(), "versions": versions(("torch", "apache-tvm")), "rounds": given.rounds,
        "elements": [elements(*form, given.rounds) for form in track(forms)],
        "steps": [steps(width, given.rounds) for width in track(WIDTHS)],
    }  # fmt: skip
    write_down(result, page(result), given.out)


if __name__ == "__main__":
    main()
