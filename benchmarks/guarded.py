"""Training in int8 with and without the speed guard: a step of each beside float's.

    python -m benchmarks.guarded [--rounds 7] [--out benchmarks/results/guarded.json]

A step, forward and backward with nothing stored, of ResNet-18 on 4 images and of pre-norm transformer blocks
on 8 x 128 tokens: by torch alone, captured and in float, in int8 where the guard's timings found that faster,
and in int8 wherever the recipe wants it. One thread, all interleaved, CPU time; a figure is the median of the
ratios of its rounds. `alone`: what the guard's timings say of all products together. Writes JSON and
Markdown.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

from benchmarks.records import commit, machine, table, versions, write_down
from benchmarks.storage import BATCH, TOKENS, WIDTHS
from benchmarks.subjects import batch, block
from qcompiler.models import build
from qcompiler.training import Training
from qcompiler.training.check import results_and_gradient, trainable
from qcompiler.tune.measure import interleave

Model = tuple[nn.Module, tuple[Any, ...]]
SETTINGS = {
    "float": {"recipe": "float"},
    "int8, guarded": {"recipe": "int8"},
    "int8 everywhere": {"recipe": "int8", "guard": False},
}


def resnet() -> Model:
    bundle = build("resnet18")
    return bundle.module.train().requires_grad_(), batch(bundle.example_inputs, 4)


def transformer(width: int) -> Model:
    return block(width), (torch.randn(BATCH, TOKENS, width),)


MODELS: dict[str, Callable[[], Model]] = {
    "resnet18": resnet,
    **{f"transformer block, width {width}": partial(transformer, width) for width in WIDTHS},
}


def measure(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    step = partial(results_and_gradient, parameters=trainable(model), inputs=inputs, seed=0)
    runs: dict[str, Callable[[], object]] = {"torch": partial(step, model)}
    trainings = {}
    for setting, options in SETTINGS.items():
        torch._dynamo.reset()
        training = Training(memory="keep", verify=False, **options)  # type: ignore[arg-type]
        run = torch.compile(model, backend=training, fullgraph=True, dynamic=False)
        runs[setting] = partial(step, run)
        runs[setting]()
        (trainings[setting],) = training.pieces
    timing = interleave(runs, rounds=rounds)
    rows = trainings["int8, guarded"].products
    paces = [row.pace for row in rows if row.pace]
    return {
        "model": name, "ms": {run: timing.median(run) * 1e3 for run in runs},
        "faster": {run: timing.ratio("float", run) for run in runs},
        "timed": len(paces), "kept": sum(pace.pays for pace in paces),
        "alone": {
            "float": sum(pace.floating for pace in paces) * 1e3,
            "int8, guarded": sum(pace.few if pace.pays else pace.floating for pace in paces) * 1e3,
            "int8 everywhere": sum(pace.few for pace in paces) * 1e3,
        },
    }  # fmt: skip


def page(result: dict[str, Any]) -> str:
    rows = [
        (case["model"], f"{case['kept']} of {case['timed']}",
         *(f"{case['ms'][run]:.0f} ms, {case['faster'][run]:.2f}x" for run in ("torch", *SETTINGS)),
         " / ".join(f"{case['alone'][run]:.0f}" for run in SETTINGS) + " ms")
        for case in result["cases"]
    ]  # fmt: skip
    return table(("model", "products in int8", "torch", *SETTINGS, "alone"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/guarded.json"))
    given = parser.parse_args()
    at = commit()
    torch.set_num_threads(1)
    result = {
        "commit": at, **machine(), "versions": versions(("torch",)), "rounds": given.rounds,
        "cases": [measure(name, given.rounds) for name in track([*MODELS])],
    }  # fmt: skip
    write_down(result, page(result), given.out)


if __name__ == "__main__":
    main()
