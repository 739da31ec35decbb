"""A captured piece as a program: the sizes that torch.compile left open stay open."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from qcompiler.ir import Graph, trace
from qcompiler.ir.export import export
from qcompiler.ir.failure import explain_failure
from qcompiler.ir.spec import spec
from qcompiler.region.capture import inputs


def traced(module: fx.GraphModule, given: Sequence[Any]) -> Graph:
    """Stage "traced" of a module that takes tensors only."""
    return trace(program(module, given), tuple(given))


def program(module: fx.GraphModule, given: Sequence[Any]) -> fx.GraphModule | ExportedProgram:
    """Exported with the symbolic sizes of torch.compile; as it is where there are none."""
    wanted = [spec(node) for node in inputs(module)]
    if all(isinstance(size, int) for found in wanted if found for size in found.shape):
        return module
    rows = next((x.shape[0] for x in given if isinstance(x, Tensor) and x.dim()), None)
    dynamic = tuple(
        {
            axis: Dim.AUTO
            for axis, (size, have) in enumerate(zip(found.shape, x.shape, strict=True))
            if not isinstance(size, int) or (axis == 0 and have == rows)
        }
        for found, x in zip(wanted, given, strict=True)
        if found is not None
    )
    try:
        return export(module, tuple(given), {}, dynamic)
    except Exception as error:
        raise explain_failure(module, error) from error
