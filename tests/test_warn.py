"""Warnings point to the user's line, through whatever of ours and torch's lies between."""

from __future__ import annotations

import threading
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor

from qcompiler.warn import warn

INNER = "from qcompiler.warn import warn\ndef f():\n    return warn('slow')\n"


def inside() -> ModuleType:
    """A module of the package that warns."""
    made = ModuleType("qcompiler.backends.inner")
    exec(compile(INNER, "inner.py", "exec"), made.__dict__)
    return made


def test_the_line_is_the_first_that_is_not_ours() -> None:
    with pytest.warns(UserWarning) as said:
        inside().f()
        warn("mine")
    assert [warning.filename for warning in said] == [__file__] * 2


def test_torch_between_is_not_the_user() -> None:
    f = inside().f

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            f()
            return x.clone()

    with pytest.warns(UserWarning, match="slow") as said:
        torch.nn.Sequential(torch.nn.Identity())(Op.apply(torch.ones(1)))  # type: ignore[no-untyped-call]
    assert said[0].filename == __file__


def test_a_thread_without_the_user_points_to_nobody_of_ours() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        thread = threading.Thread(target=inside().f)
        thread.start()
        thread.join()
    assert len(said) == 1 and said[0].filename != "inner.py"
