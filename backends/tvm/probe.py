"""Functions to time a kernel as it runs inside a network: its constants are far, its activations near.

    rounds(x, all weights, .., y):   for i in 0 .. copies - 1:   kernel(x, weights[i], .., y)

A kernel that is run again and again finds its weights in the second cache, and the schedule that wins so
loses inside a network, where the weights of all the other layers have passed meanwhile. With enough copies in
turn they come from the third.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.backends.tvm.builder import Builder

FAR = 24 << 20  # bytes that push out what is near, and fit into the third cache of servers
MOST = 64  # copies
LONG = 1 << 31  # multiply-accumulates of one call of a probe; beyond, small weights cost a layer nothing
FEWEST = 8
ALIGNMENT = 64
NEAR = ("x", "residual", "y")  # what the layer before and this one just had in hand


class Argument(NamedTuple):
    """A buffer of a kernel, and how many of it a probe holds; `step` elements lie between two."""

    name: str
    dtype: str
    size: int
    step: int
    copies: int

    @property
    def total(self) -> int:
        return self.step * self.copies

    def fresh(self) -> NDArray[Any]:
        """Numbers like those of a layer: none that a processor is slow with."""
        if self.dtype == "float32":
            return np.full(self.total, 1e-3, np.float32)
        return (np.arange(self.total) % 101).astype(self.dtype)


def arguments_of(kernel: Any, products: int) -> list[Argument]:
    """The buffers of a kernel, with the copies that its weights want; `products` is the work of one call."""
    sizes = [(str(p.name), str(p.dtype), int(p.shape[0])) for p in kernel.params]
    weights = next((np.dtype(dtype).itemsize * size for name, dtype, size in sizes if name == "weights"), FAR)
    copies = max(1, min(MOST, -(-FAR // weights), max(FEWEST, LONG // products)))
    found = []
    for name, dtype, size in sizes:
        lanes = ALIGNMENT // np.dtype(dtype).itemsize
        step = -(-size // lanes) * lanes
        found.append(Argument(name, dtype, size, step, 1 if name in NEAR else copies))
    return found


def probe(kernel: Any, given: Sequence[Argument], name: str) -> Any:
    """The function `rounds` of a kernel that is compiled beside it."""
    k = Builder(name)
    buffers = [k.argument(a.name, a.dtype, a.total) for a in given]
    with k.loop(turns(given)) as i:
        arrays = [
            tirx.op.tvm_stack_make_array(
                tirx.op.address_of(buffer[i * a.step if a.copies > 1 else 0]),
                tirx.op.tvm_stack_make_shape(a.size), 0, 1, tirx.const(0, a.dtype), tirx.const(0, "int32"),
            )
            for a, buffer in zip(given, buffers, strict=True)
        ]  # fmt: skip
        k.emit(tirx.Evaluate(tirx.op.call_cpacked(str(kernel.attrs["global_symbol"]), *arrays)))
    return k.function()


def turns(given: Sequence[Argument]) -> int:
    """Calls of the kernel in one call of its probe."""
    return max(a.copies for a in given)
