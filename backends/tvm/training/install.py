"""The operators of `ir.draws` and `ir.storage` get kernels on a CPU, for this whole process.

With `store.set_kernel_enabled("cpu", False)` torch goes back to the reference.
"""

from functools import cache
from typing import Any

from qcompiler.backends.agreement import agree
from qcompiler.backends.tvm.build import REFUSALS, refusal
from qcompiler.backends.tvm.selftest import check
from qcompiler.backends.tvm.training.calls import drawn, isa, recalled, stored
from qcompiler.errors import EngineError
from qcompiler.ir.draws import draws
from qcompiler.ir.storage import recall, store
from qcompiler.numerics.philox import Purpose, noise_key, uniform

KERNELS = ((draws, drawn), (store, stored), (recall, recalled))
HERE = "the self-test of kernels for training"


@cache
def install() -> None:
    """Raises a QCompilerError where a kernel cannot run or does not compute what the reference does."""
    check(isa())
    try:
        prove()
    except REFUSALS as error:
        raise EngineError("a kernel does not compile", node=HERE, why=refusal(error)) from error
    for operator, kernel in KERNELS:
        operator.register_kernel("cpu")(kernel)


def prove() -> None:
    """Two groups and a part of one, 4 bits, there and back; before `install` operators are the reference."""
    key, count = noise_key(1, 2, 3), 700
    x = uniform(count, key, tensor=0, purpose=Purpose.SAVED_ACTIVATION) - 0.5
    layout: tuple[Any, ...] = ([count], [1], x.dtype)
    made, expected = stored(x, key, 4, 4), store(x, key, 4, 4)
    pairs = (
        ("draws", drawn(key, count, 4, 1, 3), draws(key, count, 4, 1, 3)),
        ("codes", made[0], expected[0]),
        ("bounds", made[1], expected[1]),
        ("values", recalled(*made, 4, *layout), recall(*made, 4, *layout)),
    )
    agree(pairs, node=HERE, fix="report it with the CPU and the version of apache-tvm")
