"""A call that fails is the caller's or the engine's, as ONNX Runtime's own exceptions say."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from qcompiler.backends.ort import Ort, OrtExecutable
from qcompiler.backends.ort.failure import failure
from qcompiler.errors import EngineError, InputError, QCompilerError
from qcompiler.ir import trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite import run


class Of(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given)


def lowered(function: Callable[..., Tensor], *given: Tensor) -> OrtExecutable:
    return Ort().lower(run(CANONICAL, trace(Of(function).eval(), given)), threads=1)


def outer(x: Tensor) -> Tensor:
    return x[:, None] * x


@pytest.mark.parametrize(
    ("function", "example", "call"),
    [
        (torch.add, [(4, 3), (4, 3)], [(4, 3), (4, 2)]),  # not what the graph declares: InvalidArgument
        (torch.add, [(4, 3), (4, 3)], [(4, 3), (4, 3, 1)]),
        (torch.add, [(4, 3), (4, 3)], [(4, 3), (2, 3)]),  # a kernel's refusal: Fail
        (lambda x, y: torch.cat([x, y], 1), [(4, 3), (4, 2)], [(4, 3), (2, 2)]),
    ],
    ids=["declared", "rank", "broadcast", "cat"],
)
def test_sizes_that_a_kernel_refuses_are_the_caller_s(
    function: Callable[..., Tensor], example: Sequence[Sequence[int]], call: Sequence[Sequence[int]]
) -> None:
    executable = lowered(function, *(torch.randn(*shape) for shape in example))
    with pytest.raises(InputError, match=r"cannot run this call, because .*sizes that its kernels take"):
        executable([torch.randn(*shape) for shape in call])


def test_memory_that_ran_out_is_the_engine_s() -> None:
    """2^23 numbers by 2^23 are 2^48 bytes: more than an x86-64 process can address."""
    executable = lowered(outer, torch.randn(4))
    (result,) = executable([torch.arange(3.0)])
    assert torch.equal(result, outer(torch.arange(3.0)))
    with pytest.raises(EngineError, match=r"because Fail: .*allocate memory.*smaller batch"):
        executable([torch.zeros(1 << 23)])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("InvalidArgument", InputError), ("RuntimeException", EngineError), ("NotImplemented", EngineError),
     ("EPFail", EngineError), ("Fail", EngineError)],
)  # fmt: skip
def test_every_exception_of_the_engine_has_a_class(kind: str, expected: type[QCompilerError]) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as engine

    assert type(failure(getattr(engine, kind)("bad allocation"))) is expected
    assert type(failure(MemoryError())) is EngineError  # without a word to quote
