"""Forms of one layer in ONNX Runtime, each alone: which of them the compiler should write.

    python -m benchmarks.kernels [--rounds 25] [--out benchmarks/results/kernels.json]

One thread, the forms of a layer interleaved, CPU time per run, median of rounds. Writes JSON and Markdown.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from rich.progress import track

from benchmarks.records import commit, machine, table, versions, write_down
from qcompiler.backends.ort.session import Settings, open_session
from qcompiler.backends.ort.stem import margins, phases
from qcompiler.tune.measure import interleave

Run = Callable[[], object]
Forms = Mapping[str, Run]
RNG = np.random.default_rng(0)
OWN = "com.microsoft"
node = helper.make_node
KINDS = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("uint8"): TensorProto.UINT8}


def session(
    nodes: Sequence[NodeProto], constants: Mapping[str, Any], inputs: Mapping[str, Any],
    others: Sequence[str] = (),
) -> Run:  # fmt: skip
    """A run of a graph on the given inputs; its output is "y", and `others`."""
    graph = helper.make_graph(
        list(nodes), "form",
        [helper.make_tensor_value_info(name, KINDS[x.dtype], x.shape) for name, x in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in ("y", *others)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(OWN, 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    opened: ort.InferenceSession = open_session(model.SerializeToString(), Settings(threads=1))
    return partial(opened.run, None, dict(inputs))


def random_codes(kind: type, *shape: int) -> Any:
    low, high = (0, 256) if kind is np.uint8 else (-127, 128)
    return RNG.integers(low, high, shape).astype(kind)


def random_floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------- linear: rows, inputs, outputs

LINEARS = (
    (128, 768, 768), (128, 768, 3072), (128, 3072, 768), (50, 768, 2304), (50, 768, 768), (50, 768, 3072),
    (50, 3072, 768),
)  # fmt: skip


def linear(rows: int, width: int, outputs: int) -> Forms:
    """Codes in, float out: between Q and DQ with an int32 bias, in one op with a float bias, from float x."""
    weight = random_codes(np.int8, width, outputs)
    constants = {
        "w": weight, "sx": np.float32(0.02), "zx": np.uint8(120), "zw": np.zeros(outputs, np.int8),
        "sw": RNG.random(outputs).astype(np.float32) * 0.01 + 0.001, "b": random_floats(outputs),
        "bi": RNG.integers(-1000, 1000, outputs).astype(np.int32), "wf": random_floats(width, outputs),
    }  # fmt: skip
    codes, x = random_codes(np.uint8, rows, width), random_floats(rows, width)
    fused = node("MatMulIntegerToFloat", ["x", "w", "sx", "sw", "zx", "", "b"], ["y"], domain=OWN)
    gemm = node("QGemm", ["x", "sx", "zx", "w", "sw", "zw", "bi"], ["y"], domain=OWN)
    dynamic = node("DynamicQuantizeMatMul", ["x", "w", "sw", "zw", "b"], ["y"], domain=OWN)
    floating = [node("MatMul", ["x", "wf"], ["m"]), node("Add", ["m", "b"], ["y"])]
    return {
        "float": session(floating, constants, {"x": x}),
        "QGemm": session([gemm], constants, {"x": codes}),
        "MatMulIntegerToFloat": session([fused], constants, {"x": codes}),
        "DynamicQuantizeMatMul": session([dynamic], constants, {"x": x}),
    }


# ---------------------------------------------------------------- attention: tokens, masked

ATTENTIONS = ((50, 0), (128, 0), (128, 1), (512, 0), (512, 1))
HEADS, DEPTH = 12, 64


def attention(tokens: int, masked: int) -> Forms:
    """12 heads of 64: as pieces, with and without a guard for rows that look nowhere, or as one op."""
    inputs = {name: random_floats(1, tokens, HEADS * DEPTH) for name in "qkv"}
    if masked:
        seen = np.arange(tokens) < tokens * 3 // 4
        inputs["m"] = np.broadcast_to(np.where(seen, 0, -np.inf), (1, 1, tokens, tokens)).astype(np.float32)
    constants = {
        "split": np.array([0, 0, HEADS, DEPTH]), "merge": np.array([0, 0, HEADS * DEPTH]),
        "root": np.float32(DEPTH**-0.25), "zero": np.float32(0),
    }  # fmt: skip
    whole = node("Attention", list(inputs), ["y"], q_num_heads=HEADS, kv_num_heads=HEADS)
    return {
        "pieces, guarded": session(pieces(masked, guarded=True), constants, inputs),
        "pieces": session(pieces(masked, guarded=False), constants, inputs),
        "Attention": session([whole], {}, inputs),
    }


def pieces(masked: int, *, guarded: bool) -> list[NodeProto]:
    made = []
    for name in "qkv":
        made += [node("Reshape", [name, "split"], [f"{name}s"]),
                 node("Transpose", [f"{name}s"], [f"{name}h"], perm=[0, 2, 1, 3])]  # fmt: skip
    made += [
        node("Transpose", ["kh"], ["kt"], perm=[0, 1, 3, 2]),
        node("Mul", ["qh", "root"], ["qr"]),
        node("Mul", ["kt", "root"], ["kr"]),
        node("MatMul", ["qr", "kr"], ["scores"]),
        *([node("Add", ["scores", "m"], ["seen"])] if masked else []),
        node("Softmax", ["seen" if masked else "scores"], ["shares"], axis=-1),
    ]
    if guarded:
        made += [node("IsNaN", ["shares"], ["nan"]), node("Where", ["nan", "zero", "shares"], ["kept"])]
    return [
        *made,
        node("MatMul", ["kept" if guarded else "shares", "vh"], ["o"]),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "merge"], ["y"]),
    ]


# ---------------------------------------------------------------- prompt: tokens, capacity

PROMPTS = ((16, 256), (64, 256), (128, 256), (256, 1024), (512, 1024), (1024, 1024))


def prompt(tokens: int, capacity: int) -> Forms:
    """A prompt into an empty cache, queries and keys turned: the op of a step, or the ops of an encoder."""
    shape = (1, HEADS, capacity, DEPTH)
    places = np.arange(capacity)[:, None] * 10000.0 ** -np.linspace(0, 1, DEPTH // 2, endpoint=False)
    constants = {
        "cos": np.cos(places).astype(np.float32), "sin": np.sin(places).astype(np.float32),
        "last": np.array([tokens - 1], np.int32), "count": np.array([tokens], np.int32),
        "at": np.arange(tokens)[None], "split": np.array([0, 0, HEADS, DEPTH]),
        "sizes": np.full(3, HEADS * DEPTH), "room": np.array([0] * 6 + [capacity - tokens, 0]),
        "pk": np.zeros(shape, np.float32), "pv": np.zeros(shape, np.float32),
    }  # fmt: skip
    inputs = {"x": random_floats(1, tokens, 3 * HEADS * DEPTH)}
    tables = ["cos", "sin", "at"]
    made = [
        node("Split", ["x", "sizes"], ["q", "k", "v"], axis=-1),
        *(node("RotaryEmbedding", [name, *tables], [f"{name}r"], num_heads=HEADS) for name in "qk"),
        node("Attention", ["qr", "kr", "v"], ["y"], is_causal=1, q_num_heads=HEADS, kv_num_heads=HEADS),
    ]
    for name in ("kr", "v"):
        made += [
            node("Reshape", [name, "split"], [f"{name}s"]),
            node("Transpose", [f"{name}s"], [f"{name}h"], perm=[0, 2, 1, 3]),
            node("Pad", [f"{name}h", "room"], [f"{name}c"]),
        ]
    whole = node(
        "GroupQueryAttention", ["x", "", "", "pk", "pv", "last", "count", "cos", "sin"], ["y", "krc", "vc"],
        domain=OWN, num_heads=HEADS, kv_num_heads=HEADS, do_rotary=1,
    )  # fmt: skip
    cache = ("krc", "vc")
    return {
        "GroupQueryAttention": session([whole], constants, inputs, cache),
        "RotaryEmbedding, Attention": session(made, constants, inputs, cache),
    }


# ---------------------------------------------------------------- stem: channels, kernel, stride, filters

STEMS = (
    (3, 7, 2, 64, 224), (3, 5, 2, 64, 224), (3, 3, 2, 32, 224), (1, 7, 2, 64, 224), (1, 3, 2, 32, 224),
    (3, 4, 4, 96, 224), (3, 11, 4, 64, 224), (3, 3, 2, 24, 32), (3, 16, 16, 768, 224), (3, 32, 32, 768, 224),
    (4, 7, 2, 64, 224), (8, 3, 2, 64, 112),
)  # fmt: skip


def stem(channels: int, kernel: int, stride: int, filters: int, size: int) -> Forms:
    """A convolution of codes as it is, and as a dense one on blocks of the image."""
    padding = 0 if kernel in (stride, 4) else kernel // 2
    weight = random_codes(np.int8, filters, channels, kernel, kernel)
    blocks = phases(torch.from_numpy(weight), stride).numpy()
    begin, end = margins(size, kernel, stride, padding)
    constants = {
        "w": weight, "wb": blocks, "xs": np.float32(0.02), "xz": np.uint8(118), "ys": np.float32(20),
        "ws": np.full(filters, 0.01, np.float32), "wz": np.zeros(filters, np.int8), "yz": np.uint8(128),
        "pads": np.array([0, 0, begin, begin, 0, 0, end, end]),
    }  # fmt: skip
    inputs = {"x": random_codes(np.uint8, 1, channels, size, size)}

    def conv(source: str, taken: str, shape: Sequence[int], **options: Any) -> NodeProto:
        given = [source, "xs", "xz", taken, "ws", "wz", "ys", "yz"]
        return node("QLinearConv", given, ["y"], kernel_shape=list(shape[2:]), **options)

    pad = [node("Pad", ["x", "pads", "xz"], ["p"])] if begin or end else []
    split = node("SpaceToDepth", ["p" if pad else "x"], ["s"], blocksize=stride)
    straight = conv("x", "w", weight.shape, strides=[stride] * 2, pads=[padding] * 4)
    return {
        "as it is": session([straight], constants, inputs),
        "as blocks": session([*pad, split, conv("s", "wb", blocks.shape)], constants, inputs),
    }


# ---------------------------------------------------------------- all of them

LAYERS: tuple[tuple[Callable[..., Forms], Sequence[str], Sequence[Sequence[int]]], ...] = (
    (linear, ("rows", "inputs", "outputs"), LINEARS),
    (attention, ("tokens", "masked"), ATTENTIONS),
    (prompt, ("tokens", "capacity"), PROMPTS),
    (stem, ("channels", "kernel", "stride", "filters", "size"), STEMS),
)


def measure(make: Callable[..., Forms], sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    forms = make(*sizes)
    timing = interleave(forms, rounds=rounds)
    first = next(iter(forms))
    return {
        "sizes": list(sizes),
        "us": {name: timing.median(name) * 1e6 for name in forms},
        "ratio": {name: timing.ratio(first, name) for name in forms},
    }


def page(found: Mapping[str, Any]) -> str:
    """One table per kind of layer: sizes, and time and ratio to the first form."""
    parts = []
    for make, names, _ in LAYERS:
        cases = found[make.__name__]
        rows = [
            [*map(str, case["sizes"]),
             *(f"{case['us'][form]:.0f} µs, {case['ratio'][form]:.2f}x" for form in case["us"])]
            for case in cases
        ]  # fmt: skip
        parts.append(f"## {make.__name__}\n\n" + table([*names, *cases[0]["us"]], rows))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels.json"))
    given = parser.parse_args()
    cases = [(make, sizes) for make, _, all_sizes in LAYERS for sizes in all_sizes]
    found: dict[str, Any] = {make.__name__: [] for make, _, _ in LAYERS}
    for make, sizes in track(cases, description="measuring"):
        found[make.__name__].append(measure(make, sizes, given.rounds))
    about = {"commit": commit(), **machine(), "versions": versions(["onnxruntime"])}
    write_down(about | {"layers": found}, page(found), given.out)


if __name__ == "__main__":
    main()
