"""A linear whose parts are read apart is a linear for each."""

import torch
from torch import Tensor, nn

from qcompiler.ir import evaluate, trace
from qcompiler.passes.canonicalize import CANONICAL
from qcompiler.passes.parts import split_parts
from qcompiler.rewrite import run

aten = torch.ops.aten


class Parts(nn.Module):
    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.linear, self.whole = nn.Linear(6, 12), whole

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        product: Tensor = y[..., :4] * y[..., 4:8] + y[..., 8:]
        return product + y.sum() if self.whole else product


def linears(model: nn.Module, x: Tensor) -> tuple[list[tuple[int, ...]], bool]:
    """Weights of the linears after splitting, and whether the result is what it was."""
    graph = run(CANONICAL, trace(model.eval(), x))
    split = split_parts(graph)
    weights = [node.args[1] for node in split.fx.nodes if node.target is aten.linear.default]
    same = torch.allclose(evaluate(split, [x])[0], evaluate(graph, [x])[0], rtol=1e-6, atol=1e-6)
    return [tuple(split.tensors[str(weight.target)].shape) for weight in weights], same


def test_every_part_has_a_linear() -> None:
    assert linears(Parts(), torch.randn(2, 6)) == ([(4, 6)] * 3, True)


def test_what_is_also_read_whole_stays_whole() -> None:
    assert linears(Parts(whole=True), torch.randn(2, 6)) == ([(12, 6)], True)
