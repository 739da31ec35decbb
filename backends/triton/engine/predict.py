"""What to expect of a linear on codes against one in bfloat16, where no device can be asked.

    t = max(2 M N K / P, bytes / W) + launch                               the roofline (Williams et al. 2009)
    quantized = sum of t over the linears that read a value + the pass that quantizes it

It is taken where quantized <= (1 - 0.25) float: a prediction has to promise more than a measurement shows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.backends.base import Prediction
from qcompiler.backends.triton.engine.layers import Layer
from qcompiler.ir import label

MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class Device:
    """Operations and bytes per second, and the seconds that one more launch takes."""

    name: str
    codes: float
    floats: float
    bandwidth: float
    launch: float


# Reached with random data in bfloat16 and by copies; codes by the data sheet's factor of 2.
H100 = Device(name="H100", codes=1600e12, floats=798e12, bandwidth=3.0e12, launch=2e-6)


def product(M: int, N: int, K: int, width: int, rate: float, device: Device) -> float:
    """Seconds for operands of `width` bytes and a result of 2."""
    moved = width * (M * K + N * K) + 2 * M * N
    return max(2 * M * N * K / rate, moved / device.bandwidth) + device.launch


def quantizing(M: int, K: int, device: Device) -> float:
    """Seconds to read 2 bytes and write 1 for each element."""
    return 3 * M * K / device.bandwidth + device.launch


def predictions(
    layers: Iterable[Layer], rows: Mapping[Node, int], floats: Iterable[Node], device: Device = H100
) -> list[Prediction]:
    """One for all linears that read a value, since they are quantized or float together.

    rows: of each value that is read. floats: anchors that would run in float anyway.
    """
    readers: dict[Node, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.x, []).append(layer)
    anyway = set(floats)
    return [weighed(x, found, rows[x], anyway, device) for x, found in readers.items()]


def weighed(x: Node, layers: Sequence[Layer], M: int, anyway: set[Node], device: Device) -> Prediction:
    sizes = [(layer.problem.N, layer.problem.K) for layer in layers]
    floating = sum(product(M, N, K, 2, device.floats, device) for N, K in sizes)
    on_codes = [layer for layer in layers if layer.anchor not in anyway]
    quantized = sum(
        product(M, N, K, 1, device.codes, device) if layer in on_codes
        else product(M, N, K, 2, device.floats, device)
        for layer, (N, K) in zip(layers, sizes, strict=True)
    )  # fmt: skip
    quantized += quantizing(M, sizes[0][1], device) if on_codes else 0.0
    return Prediction(
        nodes=tuple(layer.anchor.name for layer in layers),
        labels=tuple(label(layer.anchor) for layer in layers),
        what=f"{M} row{'s' if M > 1 else ''} of {label(x)} times " + ", ".join(f"{N}x{K}" for N, K in sizes),
        us=quantized * 1e6, float_us=floating * 1e6, device=device.name,
        kept=quantized <= (1 - MARGIN) * floating,
    )  # fmt: skip
