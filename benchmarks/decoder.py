"""A decoder of 134 M parameters: a prompt and a step against what other tools export of it.

    python -m benchmarks.decoder [--out benchmarks/results/decoder.json]

The others run the model with a growing cache, as most libraries export it: in float, and with int4 weights in
blocks of 128, rounded to nearest, by ONNX Runtime's own tool. All contenders of a case run interleaved in one
process on one thread; CPU time, median of per-round ratios; SQNR of the logits against the float module on
the same caches. Writes JSON and a Markdown table. Run on a quiet machine.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.records import commit, machine, table, write_down
from qcompiler.backends import find_backend
from qcompiler.backends.memory import Memory
from qcompiler.backends.ort.session import Settings, open_session, run_session
from qcompiler.job import take
from qcompiler.manifest import versions
from qcompiler.models.decoder import Growing
from qcompiler.models.decoding import PROMPT, prompt_bundle, step_bundle
from qcompiler.models.llama import LLAMA
from qcompiler.numerics import sqnr
from qcompiler.passes.decide import decide
from qcompiler.passes.forms import forms
from qcompiler.progress import silent
from qcompiler.proof import quantized
from qcompiler.recipe import Recipe, find_recipe
from qcompiler.target import find_target
from qcompiler.tune.measure import Timing, interleave

BLOCK = 128
RECIPES = (
    find_recipe("int8-dynamic"),
    find_recipe({"base": "w8a16", "name": f"w8a16, groups of {BLOCK}", "group_size": BLOCK}),
    # Rounded to nearest, as the peer's are: random weights have nothing that more care could keep.
    find_recipe({"base": "w4a16", "name": f"w4a16, groups of {BLOCK}", "group_size": BLOCK,
                 "weight_method": "nearest"}),
    find_recipe({"base": "w4a16", "name": f"w4a16, uint4, groups of {BLOCK}", "weights": "uint4",
                 "group_size": BLOCK, "weight_method": "nearest"}),
)  # fmt: skip
FLOAT, NBITS = "growing cache, float", f"growing cache, MatMulNBits {BLOCK}"
Run = Callable[[Any], Tensor]  # the inputs of a functional call -> logits


def growing(module: Any, inputs: Any, folder: Path) -> dict[str, Run]:
    """The peers: exported in float, then with its weights in int4."""
    call = as_growing(inputs)
    path = folder / "float.onnx"
    with torch.no_grad():
        program = torch.export.export(Growing(module), call)
    torch.onnx.export(
        program, (), str(path), dynamo=True, opset_version=21, verbose=False, external_data=False
    )
    quantizer = MatMulNBitsQuantizer(
        onnx.load(path), bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / "nbits.onnx"), False)
    return {
        FLOAT: session_of(path),
        NBITS: session_of(folder / "nbits.onnx"),
    }


def as_growing(inputs: Any) -> tuple[Any, ...]:
    """The same call with a cache that is as long as what is in it."""
    tokens, start, cache = inputs
    filled = int(start)
    pairs = [tuple(x[:, :, :filled].contiguous() for x in pair) for pair in cache]
    return (tokens, pairs) if filled else (tokens,)


def session_of(path: Path) -> Run:
    """As for ours, the cache is brought into its form once, before anything is timed."""
    session = open_session(path, Settings(threads=1, disabled=()))
    held: list[Any] = [None, None]

    def run(inputs: Any) -> Tensor:
        if held[0] is not inputs:
            held[:] = inputs, pytree.tree_leaves(as_growing(inputs))
        return run_session(session, held[1])[0]

    return run


def compiled(module: Any, inputs: Any, calibration: Sequence[Any], recipe: Recipe, backend: str) -> Any:
    """Quantized and lowered without the guard, which compares with float only."""
    target = find_target("cpu", backend)
    job = take(module, inputs, calibration, silent, forms=forms(recipe, target))
    decision = decide(job.original, job.data, recipe, target)
    return find_backend(backend, target).lower(quantized(decision), threads=1)


def prompt_runner(executable: Any) -> Run:
    return lambda inputs: executable(pytree.tree_leaves(inputs))[0]


def step_runner(executable: Any) -> Run:
    """In place: the cache of the inputs is copied in once, before anything is timed."""
    memory: Memory = executable.memory()
    held: list[Any] = [None]

    def run(inputs: Any) -> Tensor:
        tokens, start, cache = inputs
        if held[0] is not cache:
            held[0] = cache
            memory.fill(pytree.tree_leaves(cache), int(start))
        memory.length = int(start)
        return memory.feed(tokens)

    return run


def case(name: str, make: Any, runner: Callable[[Any], Run], folder: Path) -> dict[str, Any]:
    """Time all contenders on the example, and judge them on the test samples."""
    module, example, calibration, metric = make(LLAMA)
    contenders = growing(module, example, folder)
    for recipe in RECIPES:
        contenders[recipe.name] = runner(compiled(module, example, calibration, recipe, "ort"))
    for recipe in RECIPES[1:]:
        run = runner(compiled(module, example, calibration, recipe, "tvm"))
        contenders[f"{recipe.name}, kernels of our own"] = run
    wanted = torch.cat([expected.float() for expected in metric.expected])
    quality = {
        name: sqnr(wanted, torch.cat([run(inputs) for inputs in metric.inputs()]))
        for name, run in contenders.items()
    }
    calls = {name: ready(run, example) for name, run in contenders.items()}
    return {"case": name, "rows": rows(interleave(calls), quality)}


def ready(run: Run, inputs: Any) -> Callable[[], Tensor]:
    """A call on the example; the first one brings its cache in, so that no round pays for it."""
    run(inputs)
    return lambda: run(inputs)


def rows(timing: Timing, quality: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "contender": name,
            "ms": timing.median(name) * 1e3,
            "over_float": timing.ratio(FLOAT, name),
            "over_nbits": timing.ratio(NBITS, name),
            "rounds": timing.ratios(FLOAT, name),
            "sqnr_db": quality[name],
        }
        for name in timing.seconds
    ]


COLUMNS = ("case", "contender", "ms", "over float", "rounds", "over MatMulNBits", "SQNR dB")


def page(cases: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        (
            found["case"], row["contender"], f"{row['ms']:.2f}", f"{row['over_float']:.2f}x",
            f"{min(row['rounds']):.2f} to {max(row['rounds']):.2f}", f"{row['over_nbits']:.2f}x",
            f"{row['sqnr_db']:.1f}",
        )
        for found in cases
        for row in found["rows"]
    ]  # fmt: skip
    return table(COLUMNS, lines)


CASES: dict[str, tuple[Any, Callable[[Any], Run]]] = {
    "prompt": (prompt_bundle, prompt_runner),
    "step": (step_bundle, step_runner),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoder.json"))
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    at = commit()  # before the first figure: files may change meanwhile
    logging.getLogger().setLevel(logging.WARNING)  # importing the peers' tool turns on everybody's notes
    with tempfile.TemporaryDirectory() as folder:
        found = [case(name, *CASES[name], Path(folder)) for name in given.cases]
    data = {"commit": at, **machine(), "versions": versions(), "prompt": PROMPT, "cases": found}
    write_down(data, page(found), given.out)


if __name__ == "__main__":
    main()
