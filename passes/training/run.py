"""Running both halves of a step on real tensors, to verify a plan and to measure it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from qcompiler.passes.training.halves import Halves

Watch = Callable[[Node, Sequence[Any], Any], None]
"""Sees every call: its node, arguments and value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """Forward's results for the user, and all that it hands to backward."""

    results: tuple[Any, ...]
    handed: tuple[Any, ...]


class Runner(fx.Interpreter):
    """Runs a graph whose draws have the given key."""

    def __init__(self, half: fx.GraphModule, key: Tensor, watch: Watch | None = None) -> None:
        super().__init__(half)
        self.key, self.watch = key, watch

    def run_node(self, n: Node) -> Any:
        if n.target is torch.ops.qcompiler.noise_key.default:
            return self.key.to(n.args[0])  # type: ignore[arg-type]
        if n.target is torch.ops.qcompiler.seen_before.default:  # nothing: every tensor has its own scale
            return torch.zeros(n.args[1], device=n.args[0])  # type: ignore[arg-type]
        args = self.fetch_args_kwargs_from_env(n)[0] if self.watch else ()
        value = super().run_node(n)
        if self.watch and n.op == "call_function":
            self.watch(n, args, value)
        return value


@contextmanager
def apart_from_draws(values: Sequence[Any]) -> Iterator[None]:
    """Leave torch's generators as they were, on the CPU and wherever some tensors are.

    Whoever trains draws as if nothing had been checked or measured.
    """
    devices = {x.device.index for x in values if isinstance(x, Tensor) and x.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield


@torch.no_grad()
def forward(halves: Halves, inputs: Sequence[Any], key: Tensor, watch: Watch | None = None) -> Passed:
    """Forward on real inputs; random operators draw from torch's generator, as they would in training."""
    results = Runner(halves.forward, key, watch).run(*inputs)
    return Passed(results=tuple(results[: halves.outputs]), handed=tuple(results[halves.outputs :]))


@torch.no_grad()
def backward(
    halves: Halves, handed: Sequence[Any], tangents: Sequence[Any], key: Tensor, watch: Watch | None = None
) -> tuple[Any, ...]:
    """The gradients of all inputs; None for those that have none."""
    numbers = [value for value in handed if not isinstance(value, Tensor)]
    tensors = [value for value in handed if isinstance(value, Tensor)]
    return tuple(Runner(halves.backward, key, watch).run(*numbers, *tensors, *tangents))


def cotangents(halves: Halves, seed: int = 0) -> list[Tensor]:
    """Normal gradients of the results, one for each tangent that backward takes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = halves.backward.graph.find_nodes(op="placeholder")
    given = [node.meta["val"] for node in inputs if node.name.startswith("tangents")]
    return [
        torch.randn(tuple(value.shape), generator=generator, dtype=drawn(value.dtype))
        .to(value.dtype)
        .to(value.device)
        for value in given
    ]


def drawn(dtype: torch.dtype) -> torch.dtype:
    """The type that draws have before they are rounded to a narrower one."""
    return torch.complex64 if dtype.is_complex else torch.float32


def distance(found: Sequence[Any], exact: Sequence[Any]) -> float:
    """|found - exact| / |exact| over all gradients together; infinite where one is not finite."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if isinstance(b, Tensor)]
    error = sum(float((real_parts(a) - real_parts(b)).square().sum()) for a, b in pairs)
    size = sum(float(real_parts(b).square().sum()) for _, b in pairs)
    if not error < float("inf"):
        return float("inf")
    return (error / size) ** 0.5 if size else 0.0 if error == 0 else float("inf")


def real_parts(x: Tensor) -> Tensor:
    """Values in float64, real and imaginary parts side by side."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()
