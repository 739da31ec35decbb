"""The least time an op can take: arithmetic over peak rate, or bytes over bandwidth (Williams et al. 2009).

time >= max(2 MACs / ops per second, bytes / bytes per second)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from qcompiler.ir import arguments, spec

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one core does per second, measured: int8 and float operations, and bytes from memory."""

    int8_ops: float
    float_ops: float
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one op has to do: multiply-accumulates, and elements read and written."""

    macs: int
    elements: int
    weights: int


def work_of(node: Node, batch: int) -> Work | None:
    """The work of a conv, linear or pointwise op; symbolic sizes count as `batch`."""
    found = spec(node)
    if found is None:
        return None
    out = count(found.shape, batch)
    given = arguments(node)
    weight = spec(given["weight"]) if isinstance(given.get("weight"), Node) else None
    inputs = sum(
        count(read.shape, batch)
        for arg in node.all_input_nodes
        if arg.op != "get_attr" and (read := spec(arg))
    )
    if weight is not None and ("conv" in str(node.target) or node.target is aten.linear.default):
        per_output = count(weight.shape[1:], 1)
        return Work(macs=out * per_output, elements=out + inputs, weights=count(weight.shape, 1))
    return Work(macs=0, elements=out + inputs, weights=0)


def count(shape: tuple[Any, ...], batch: int) -> int:
    total = 1
    for size in shape:
        total *= size if isinstance(size, int) else batch
    return total


def roofline(work: Work, machine: Machine, *, integer: bool) -> float:
    """Seconds on one core."""
    rate = machine.int8_ops if integer else machine.float_ops
    width = 1 if integer else 4
    return max(2 * work.macs / rate, (work.elements + work.weights) * width / machine.bytes_per_second)


def measure_machine(*, size: int = 512, repeats: int = 5) -> Machine:
    """Peak rates of one core as ONNX Runtime's matrix products and a copy reach them."""
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(0, 255, (size, size), dtype=np.uint8),
        rng.integers(-127, 127, (size, size), dtype=np.int8),
    )
    operations = 2 * size**3
    integer = product_session("MatMulInteger", x, w)
    floating = product_session("MatMul", x.astype(np.float32), w.astype(np.float32))
    block = np.zeros(1 << 26, dtype=np.uint8)
    return Machine(
        int8_ops=operations / fastest(integer, repeats),
        float_ops=operations / fastest(floating, repeats),
        bytes_per_second=2 * block.nbytes / fastest(block.copy, repeats),
    )


def fastest(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return max(min(times), 1e-9)


def product_session(op: str, x: Any, w: Any) -> Callable[[], object]:
    """A one-op model over a constant weight, so that the engine packs it as it does in a network."""
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype
    result = 6 if op == "MatMulInteger" else 1
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", result, (x.shape[0], w.shape[1]))],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})
