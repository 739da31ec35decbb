"""Functions as C has them: pointers and numbers in, and memory to work in given by the caller.

TVM checks and unpacks the arguments of all others, and asks the system for their memory call by call.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tvm import tirx
from tvm.ir import CallingConv, PointerType, PrimType

from qcompiler.backends.tvm.build import ALIGNMENT
from qcompiler.backends.tvm.builder import sequence

STACK = 1024  # bytes below which TVM makes a buffer a variable of the function


def plain(function: Any) -> Any:
    """f(pointer, .., number, ..), with the address of its workspace behind them if it wants one."""
    parameters, views = [], []
    for parameter in function.params:
        if tirx.is_buffer_var(parameter):
            pointer = tirx.Var(parameter.name, PointerType(PrimType(str(parameter.dtype)), "global"))
            views.append(tirx.DeclBuffer(parameter, data=pointer))
            parameters.append(pointer)
        else:
            parameters.append(parameter)
    if scratch(function):
        start = tirx.Var("workspace", "int64")
        parameters.append(start)
        for buffer in scratch(function):
            views.append(tirx.DeclBuffer(buffer, data=pointer_to(start, str(buffer.dtype))))
            start = start + bytes_of(buffer)
    made = tirx.PrimFunc(parameters, sequence([*views, without_scratch(function.body)]), attrs=function.attrs)
    return made.with_attr("calling_conv", int(CallingConv.C_PACKED_FUNC))


def workspace(function: Any) -> int:
    """Bytes."""
    return sum(map(bytes_of, scratch(function)))


def scratch(function: Any) -> list[Any]:
    """The buffers that TVM would ask the system for."""
    return [each.buffer for each in leaves(function.body) if is_scratch(each)]


def leaves(statement: Any) -> Iterator[Any]:
    match statement:
        case tirx.For():
            yield from leaves(statement.body)
        case tirx.SeqStmt():
            for each in statement:
                yield from leaves(each)
        case _:
            yield statement


def without_scratch(statement: Any) -> Any:
    match statement:
        case tirx.For():
            body = without_scratch(statement.body)
            loop = (statement.loop_var, statement.min, statement.extent, statement.kind, body)
            return tirx.For(*loop, annotations=statement.annotations)
        case tirx.SeqStmt():
            return sequence([without_scratch(each) for each in statement if not is_scratch(each)])
    return statement


def is_scratch(statement: Any) -> bool:
    return isinstance(statement, tirx.AllocBuffer) and bytes_of(statement.buffer) >= STACK


def bytes_of(buffer: Any) -> int:
    """In whole cache lines."""
    size = math.prod(map(int, buffer.shape)) * np.dtype(str(buffer.dtype)).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def pointer_to(address: Any, dtype: str = "void") -> Any:
    return tirx.op.reinterpret(PointerType(PrimType(dtype)), address)
