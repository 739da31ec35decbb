"""What to expect of linears on codes against the same in bfloat16, where no device can be asked.

    t = max(2 M N K / P, bytes / W) + launch                               the roofline (Williams et al. 2009)
    T = sum of t over the linears that read a value + the pass that makes its codes

It is taken where T is less by what `tuning.profit` wants of predictions.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch.fx import Node

from qcompiler.backends.base import Prediction
from qcompiler.backends.triton.engine.layers import Layer
from qcompiler.backends.triton.tuning import profit
from qcompiler.backends.triton.tuning.device import DEVICES, Device
from qcompiler.ir import label
from qcompiler.target import Target

KINDS = {"int8": "int8", "e4m3": "fp8"}
HALF = 2  # bytes of a result, and of a number in bfloat16


def device_for(target: Target) -> Device:
    """A device that a target speaks of: the first that multiplies FP8, or the first that does not."""
    wants = target.computes("float8_e4m3fn")
    return next(device for device in DEVICES if ("fp8" in device.rates) == wants)


def product(M: int, N: int, K: int, kind: str, device: Device) -> float:
    """Seconds of y [M, N] = x [M, K] W^T."""
    width = HALF if kind == "bf16" else 1
    moved = width * (M * K + N * K) + HALF * M * N
    return max(2 * M * N * K / device.rates[kind], moved / device.bandwidth) + device.launch


def quantizing(M: int, K: int, device: Device) -> float:
    """Seconds to read numbers and write codes."""
    return (HALF + 1) * M * K / device.bandwidth + device.launch


def predictions(
    layers: Iterable[Layer], rows: Mapping[str, int], floats: Collection[str], device: Device
) -> list[Prediction]:
    """One for all linears that read a value, since they are quantized or float together.

    By an anchor's name, rows: of what it reads in a call; floats: those that would read no codes anyway.
    """
    readers: dict[Node, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.x, []).append(layer)
    return [weighed(x, found, rows[found[0].anchor.name], floats, device) for x, found in readers.items()]


def weighed(x: Node, layers: Sequence[Layer], M: int, floats: Collection[str], device: Device) -> Prediction:
    def seconds(layer: Layer, kind: str) -> float:
        return product(M, layer.problem.N, layer.problem.K, kind, device)

    on_codes = [layer for layer in layers if layer.anchor.name not in floats]
    few_bits = sum(
        seconds(layer, KINDS[layer.problem.format] if layer in on_codes else "bf16") for layer in layers
    )
    bucket = profit.Bucket(
        M=M, weight=1.0, few_bits=few_bits, in_float=sum(seconds(layer, "bf16") for layer in layers),
        quantize=quantizing(M, layers[0].problem.K, device) if on_codes else 0.0,
    )  # fmt: skip
    sizes = ", ".join(f"{layer.problem.N}x{layer.problem.K}" for layer in layers)
    verdict = profit.weighed(f"{label(x)} times {sizes}", [bucket], is_measured=False)
    return Prediction(
        nodes=tuple(layer.anchor.name for layer in layers),
        labels=tuple(label(layer.anchor) for layer in layers), why=f"{verdict}, for {device.name}",
        us=bucket.ours * 1e6, float_us=bucket.in_float * 1e6, device=device.name, kept=verdict.is_accepted,
    )  # fmt: skip
