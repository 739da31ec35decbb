"""Tensors go in and out of a session without copies, and stay what they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qcompiler.backends.ort import Ort
from qcompiler.backends.ort.session import run_session
from qcompiler.ir import trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.rewrite import run


class Watched:
    """A session that keeps what it was fed and what it returned."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, names: list[str], feed: Mapping[str, Any]) -> Any:
        self.feed, self.results = list(feed.values()), self.session.run(names, feed)
        return self.results


@pytest.fixture(scope="module")
def session() -> Any:
    graph = run(CANONICAL, trace(nn.Linear(64, 64).eval(), torch.randn(2, 64)))
    return Ort().lower(graph, threads=1).session


def test_tensors_go_in_and_out_without_a_copy(session: Any) -> None:
    watched, x = Watched(session), torch.randn(5, 64)
    (y,) = run_session(watched, [x])
    assert watched.feed[0].ctypes.data == x.data_ptr()
    assert watched.results[0].ctypes.data == y.data_ptr()
    assert not watched.results[0].flags.owndata  # nor did the engine copy it for numpy


def test_results_of_one_call_survive_the_next(session: Any) -> None:
    first, second = torch.randn(5, 64), torch.randn(5, 64)
    (kept,) = run_session(session, [first])
    before = kept.clone()
    run_session(session, [second])
    assert torch.equal(kept, before)


def test_a_tensor_that_does_not_lie_contiguous_is_read_right(session: Any) -> None:
    x = torch.randn(64, 5)
    (y,) = run_session(session, [x.t()])
    assert torch.equal(y, run_session(session, [x.t().contiguous()])[0])


def test_what_requires_a_gradient_is_read_without_one(session: Any) -> None:
    x = torch.randn(5, 64, requires_grad=True)
    (y,) = run_session(session, [x])
    assert not y.requires_grad and np.isfinite(y.numpy()).all()


def test_the_settings_are_all_that_a_session_was_told() -> None:
    graph = run(CANONICAL, trace(nn.Linear(4, 4).eval(), torch.randn(2, 4)))
    assert Ort().settings(graph, threads=1) == {
        "threads": 1, "level": "all", "disabled": ("SkipLayerNormFusion",), "accuracy_level": 4,
        "arena": True, "spinning": False, "denormals_are_zero": True,
    }  # fmt: skip
