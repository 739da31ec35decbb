"""The formulas of all integer kernels, under the names that rows of targets call them by."""

from collections.abc import Callable, Mapping

from torch import Tensor

from qcompiler.backends.reference.attention import by_token
from qcompiler.backends.reference.kernels import (
    Call,
    add,
    average,
    concatenate,
    convolution,
    global_average,
    linear,
    maximum,
    multiply,
    unary,
)

FORMULAS: Mapping[str, Callable[[Call], Tensor]] = {
    "attention": by_token,
    "conv": convolution,
    "linear": linear,
    "add": add,
    "mul": multiply,
    "global_avg_pool": global_average,
    "avg_pool": average,
    "max_pool": maximum,
    "concat": concatenate,
    "unary": unary,
}
