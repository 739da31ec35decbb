"""What to expect of linears on codes against the same in bfloat16, where no device can be asked.

    t = max(2 M N K / P, bytes / W) + launch                               `tuning.predict.least`
    T = sum of t over the linears that read a value + the pass that makes its codes

Codes that the linear before hands on take no pass, and its result half the bytes. It is taken where T is less
by what `tuning.profit` wants of predictions. Weights of few bits are there to save memory: they are taken
where their bytes are fewer by as much, and T is no longer. One row of a large linear takes as long as its
weight is read, and many rows as long as they are multiplied either way.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch.fx import Node

from qcompiler.backends.base import Prediction
from qcompiler.backends.triton.decisions import Linear
from qcompiler.backends.triton.engine.layer import Layer
from qcompiler.backends.triton.layouts import layout_named
from qcompiler.backends.triton.tuning import profit
from qcompiler.backends.triton.tuning.device import DEVICES, Device
from qcompiler.backends.triton.tuning.predict import least
from qcompiler.ir import label
from qcompiler.target import Target

KINDS = {"int8": "int8", "e4m3": "fp8", "e4m3b128": "fp8"}
HALF = 2  # bytes of a result, and of a number in bfloat16


def device_for(target: Target) -> Device:
    """A device that a target speaks of: the first that multiplies FP8, or the first that does not."""
    wants = target.computes("float8_e4m3fn")
    return next(device for device in DEVICES if ("fp8" in device.rates) == wants)


def product(
    M: int, N: int, K: int, kind: str, device: Device, *, weight: float | None = None, result: float = HALF
) -> float:
    """Seconds of y [M, N] = x [M, K] W^T; `weight` is the bytes of W where they are not those of its kind.

    result: bytes of a number of y.
    """
    width = HALF if kind == "bf16" else 1
    moved = width * M * K + (width * N * K if weight is None else weight) + result * M * N
    return least(moved, device, kind=kind, operations=2 * M * N * K) + device.launch


def rows_of(problem: Linear) -> int:
    """Of the weight, which a gate shares with what it multiplies."""
    return problem.N * (1 + problem.gated)


def few_bit_bytes(problem: Linear) -> float:
    """Codes in their layout, and a scale and at most a zero point for each group."""
    layout = layout_named(problem.format)
    return rows_of(problem) * problem.K * (1 / layout.per_byte + (HALF + 1) / layout.group)


def few_bit_product(M: int, problem: Linear, device: Device) -> float:
    """Seconds of a product by few bits; of a gate one number leaves for two sums."""
    return product(
        M, rows_of(problem), problem.K, "bf16", device, weight=few_bit_bytes(problem),
        result=HALF / (1 + problem.gated),
    )  # fmt: skip


def float_product(M: int, problem: Linear, device: Device) -> float:
    """Seconds of the same in bfloat16: of a gate one product, and one kernel that reads both its halves."""
    sums = product(M, rows_of(problem), problem.K, "bf16", device)
    return sums + (least(3 * HALF * M * problem.N, device) + device.launch if problem.gated else 0.0)


def quantizing(M: int, K: int, device: Device) -> float:
    """Seconds to read numbers and write codes."""
    return least((HALF + 1) * M * K, device) + device.launch


def predictions(
    layers: Iterable[Layer],
    rows: Mapping[str, int],
    floats: Collection[str],
    handed: Mapping[Node, Layer],
    device: Device,
) -> list[Prediction]:
    """One for all linears that read a value, since they are quantized or float together.

    By an anchor's name, rows: of what it reads in a call; floats: those that would read no codes anyway.
    handed: codes that a layer hands on.
    """
    readers: dict[tuple[Node, bool], list[Layer]] = {}
    for layer in layers:
        readers.setdefault((layer.x, layer.is_weight_only), []).append(layer)
    return [
        (weighed_bytes if few_bits else weighed)(x, found, rows[found[0].anchor.name], floats, handed, device)
        for (x, few_bits), found in readers.items()
    ]


def weighed(
    x: Node,
    layers: Sequence[Layer],
    M: int,
    floats: Collection[str],
    handed: Mapping[Node, Layer],
    device: Device,
) -> Prediction:
    def seconds(layer: Layer, kind: str) -> float:
        result = 1 if kind != "bf16" and layer.onward in handed else HALF
        return product(M, layer.problem.N, layer.problem.K, kind, device, result=result)

    on_codes = [layer for layer in layers if layer.anchor.name not in floats]
    few_bits = sum(
        seconds(layer, KINDS[layer.problem.format] if layer in on_codes else "bf16") for layer in layers
    )
    makes_codes = any(layer.coded not in handed for layer in on_codes)
    bucket = profit.Bucket(
        M=M, weight=1.0, few_bits=few_bits, in_float=sum(seconds(layer, "bf16") for layer in layers),
        quantize=quantizing(M, layers[0].problem.K, device) if makes_codes else 0.0,
    )  # fmt: skip
    verdict = profit.weighed(named(x, layers), [bucket], is_measured=False)
    return Prediction(
        nodes=tuple(layer.anchor.name for layer in layers),
        labels=tuple(label(layer.anchor) for layer in layers), why=f"{verdict}, for {device.name}",
        us=bucket.ours * 1e6, float_us=bucket.in_float * 1e6, device=device.name, kept=verdict.is_accepted,
    )  # fmt: skip


def weighed_bytes(
    x: Node,
    layers: Sequence[Layer],
    M: int,
    floats: Collection[str],
    handed: Mapping[Node, Layer],
    device: Device,
) -> Prediction:
    """The same of weights of few bits, whose bytes decide."""

    def total(few: bool) -> tuple[float, float]:
        """Bytes of all weights, and seconds of all products."""
        ways = [(layer.problem, few and layer.anchor.name not in floats) for layer in layers]
        sizes = (few_bit_bytes(one) if is_few else HALF * rows_of(one) * one.K for one, is_few in ways)
        seconds = ((few_bit_product if is_few else float_product)(M, one, device) for one, is_few in ways)
        return sum(sizes), sum(seconds)

    (ours, seconds), (theirs, in_float) = total(True), total(False)
    kept = ours <= (1 - profit.PREDICTED) * theirs and seconds <= in_float
    return Prediction(
        nodes=tuple(name for layer in layers for name in layer.names),
        labels=tuple(label(each.anchor) for layer in layers for each in layer.linears),
        why=f"{'accepted' if kept else 'refused'} {named(x, layers)} M={M}: {ours / theirs:.0%} of the"
        f" weights' bytes, at most {1 - profit.PREDICTED:.0%} wanted, {in_float / seconds:.2f}x predicted,"
        f" for {device.name}",
        us=seconds * 1e6, float_us=in_float * 1e6, device=device.name, kept=kept,
    )  # fmt: skip


def named(x: Node, layers: Sequence[Layer]) -> str:
    sizes = ", ".join(f"{rows_of(layer.problem)}x{layer.problem.K}" for layer in layers)
    return f"{label(x)} times {sizes}"
