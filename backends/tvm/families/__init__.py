"""Regions as layers of a kernel family: a table from formulas to what computes them.

Region  -->  Layer (what the function is made of, its arguments, its constants), or None: the reference
"""

from collections.abc import Callable, Mapping

from qcompiler.backends.tvm.families.attention import attention
from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.families.contractions import contraction
from qcompiler.backends.tvm.families.elements import add, concatenate, multiply, table
from qcompiler.backends.tvm.families.pools import average_pool, global_average, max_pool
from qcompiler.passes.partition import Region

FAMILIES: Mapping[str, Callable[[Places, Region], Layer | None]] = {
    "conv": contraction,
    "linear": contraction,
    "attention": attention,
    "max_pool": max_pool,
    "avg_pool": average_pool,
    "global_avg_pool": global_average,
    "add": add,
    "mul": multiply,
    "unary": table,
    "concat": concatenate,
}
