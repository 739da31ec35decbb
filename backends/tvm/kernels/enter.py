"""Images of floats become planes of codes: quantized and sorted by pixel in one pass.

x [N, C, H, W] float32  -->  y[n, h, w, c] = sat(rne(x[n, c, h, w] / s) + z)
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from qcompiler.backends.tvm.builder import Builder, splat
from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import within
from qcompiler.backends.tvm.plane import Plane

TOGETHER = 4  # vectors that are narrowed to bytes at a time
FAR = 1e6  # beyond all codes, and still an int32


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A batch of images. Invariant: a line has at least as many pixels as a register has lanes."""

    y: Plane
    zero_point: int


def entry(layer: Entry, isa: Isa, name: str) -> Any:
    """The function (x, scale, y)."""
    k, y, lanes = Builder(name), layer.y, isa.lanes
    source = k.argument("x", "float32", y.images * y.channels * y.height * y.width)
    scale = k.argument("scale", "float32", 1)
    target = k.argument("y", "uint8", y.size)
    whole, rest = divmod(y.channels, TOGETHER)

    def block(n: Any, h: Any, w: Any, first: Any, count: int) -> None:
        """`count` channels of a register full of pixels."""
        vectors = []
        for c in range(count):
            at = ((n * y.channels + first + c) * y.height + h) * y.width + w
            steps = k.load(source, at, lanes) / splat(scale[0], "float32", lanes)
            # What is not a number is the lowest code: max takes its second operand unless the first is more.
            steps = tirx.min(tirx.max(steps, splat(-FAR, "float32", lanes)), splat(FAR, "float32", lanes))
            rounded = isa.nearest(steps)
            vectors.append(rounded + splat(layer.zero_point, "int32", lanes) if layer.zero_point else rounded)
        codes = k.bind(isa.narrow(vectors + vectors[-1:] * (TOGETHER - count)))
        place = y.origin + n * y.image + h * y.line + w * y.pitch + first
        if y.pitch == count:  # pixels lie side by side
            order = [isa.order[c * lanes + pixel] for pixel in range(lanes) for c in range(count)]
            k.store(target, place, tirx.Shuffle([codes], order), count * lanes)
            return
        for pixel in range(lanes):
            order = [isa.order[c * lanes + pixel] for c in range(count)]
            k.store(target, place + pixel * y.pitch, tirx.Shuffle([codes], order), count)

    with k.loop(y.images) as n, k.loop(y.height) as h, k.loop(-(-y.width // lanes)) as t:
        w = within(k, t, lanes, y.width)
        if whole:
            with k.loop(whole) as c:
                block(n, h, w, c * TOGETHER, TOGETHER)
        if rest:
            block(n, h, w, whole * TOGETHER, rest)
    return k.function()
