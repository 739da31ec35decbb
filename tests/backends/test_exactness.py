"""ONNX Runtime against the exact reference: each kernel on its own inputs, and the whole model end to end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.api import explain
from qcompiler.backends.ort import Ort, OrtExecutable
from qcompiler.backends.reference import Reference, ReferenceExecutable
from qcompiler.errors import LoweringError
from qcompiler.ir import trace
from qcompiler.passes.check import contract
from qcompiler.passes.decide import Decision
from qcompiler.proof import quantized

BATCHES = (1, 2, 5)


def functional(shape: tuple[int, ...], run: Callable[[Any, Tensor], Any], **modules: nn.Module) -> "Network":
    """A network from its modules and the function that calls them."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                self.add_module(name, module)

        def forward(self, x: Tensor) -> Any:
            return run(self, x)

    return Network(model=Model().eval(), shape=shape)


@dataclass(frozen=True, kw_only=True)
class Network:
    model: nn.Module
    shape: tuple[int, ...]  # of one sample

    def sample(self, batch: int) -> Tensor:
        return torch.randn(batch, *self.shape)


def mobile() -> Network:
    """Stem, inverted residual with ReLU6 and a depthwise convolution, pooled head."""

    def run(m: Any, x: Tensor) -> Any:
        y = F.relu6(m.stem(x))
        z = m.project(F.relu6(m.depthwise(F.relu6(m.expand(y)))))
        return m.head((y + z).mean((2, 3)))

    return functional(
        (3, 12, 12), run, stem=nn.Conv2d(3, 8, 3, stride=2, padding=1), expand=nn.Conv2d(8, 24, 1),
        depthwise=nn.Conv2d(24, 24, 3, padding=1, groups=24), project=nn.Conv2d(24, 8, 1, bias=False),
        head=nn.Linear(8, 5),
    )  # fmt: skip


def grouped() -> Network:
    """Groups, dilation, uneven kernels and strides, batch norm, two clamps."""

    def run(m: Any, x: Tensor) -> Any:
        y = F.hardtanh(m.norm(m.groups(x)), 0, 1.5)
        return m.uneven(F.relu(m.dilated(y)))

    return functional(
        (4, 14, 11), run, groups=nn.Conv2d(4, 8, 3, groups=2), norm=nn.BatchNorm2d(8),
        dilated=nn.Conv2d(8, 6, 3, dilation=2, padding=2), uneven=nn.Conv2d(6, 4, (1, 3), stride=(2, 1)),
    )  # fmt: skip


def line() -> Network:
    def run(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        return m.second(y) + m.short(y)

    return functional(
        (3, 17), run, first=nn.Conv1d(3, 8, 5, padding=2, stride=2),
        second=nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=4), short=nn.Conv1d(8, 8, 1),
    )  # fmt: skip


def volume() -> Network:
    def run(m: Any, x: Tensor) -> Any:
        y = F.relu(m.first(x))
        return m.second(y) + y

    return functional(
        (2, 6, 7, 5),
        run,
        first=nn.Conv3d(2, 4, 3, padding=1),
        second=nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)),
    )


def pooled() -> Network:
    """Every pool: padding counted or not, ceil mode, overlapping windows."""

    def run(m: Any, x: Tensor) -> Any:
        y = F.relu(m.conv(x))
        counted = F.avg_pool2d(y, 3, 2, 1, count_include_pad=True)
        uncounted = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
        largest = F.max_pool2d(y, 3, 2, 1)
        return m.last(torch.cat([counted, uncounted, largest], 1)) + m.last(
            torch.cat([F.avg_pool2d(y, 2, ceil_mode=True), F.max_pool2d(y, 2, ceil_mode=True), uncounted], 1)
        )

    return functional((3, 9, 9), run, conv=nn.Conv2d(3, 4, 3, padding=1), last=nn.Conv2d(12, 4, 1))


def excited() -> Network:
    """Squeeze and excitation, leaky ReLU, a concatenation of different ranges."""

    def run(m: Any, x: Tensor) -> Any:
        y = F.leaky_relu(m.conv(x), 0.1)
        weights = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))
        return m.mix(torch.cat([y * weights, y], 1))

    return functional(
        (3, 8, 8), run, conv=nn.Conv2d(3, 8, 3), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1),
        mix=nn.Conv2d(16, 3, 1),
    )  # fmt: skip


def perceptron() -> Network:
    """Linears on codes: 2-D, with and without bias, clamped and not."""

    def run(m: Any, x: Tensor) -> Any:
        return m.last(F.relu6(m.second(F.relu(m.first(x)))))

    return functional(
        (20,), run, first=nn.Linear(20, 33), second=nn.Linear(33, 17, bias=False), last=nn.Linear(17, 4)
    )


EXACT = (mobile, grouped, line, volume, pooled, excited, perceptron)


def attention() -> Network:
    """One block of a transformer: q, k and v share an input; softmax, norms and GELU stay float."""

    def run(m: Any, x: Tensor) -> Any:
        y = m.norm1(x)
        q, k, v = (part(y).unflatten(-1, (2, 8)).transpose(1, 2) for part in (m.q, m.k, m.v))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + m.out(heads)
        return x + m.fc2(F.gelu(m.fc1(m.norm2(x))))

    return functional(
        (6, 16), run, norm1=nn.LayerNorm(16), norm2=nn.LayerNorm(16), q=nn.Linear(16, 16),
        k=nn.Linear(16, 16), v=nn.Linear(16, 16, bias=False), out=nn.Linear(16, 16),
        fc1=nn.Linear(16, 32), fc2=nn.Linear(32, 16),
    )  # fmt: skip


def lowered(network: Network, recipe: str = "int8") -> tuple[Decision, OrtExecutable, ReferenceExecutable]:
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    decision = explain(network.model, network.sample(4), recipe=recipe)
    graph = quantized(decision)
    return decision, Ort().lower(graph, threads=1), Reference().lower(graph)


@pytest.mark.parametrize("make", EXACT, ids=lambda make: make.__name__)
def test_integer_networks(make: Callable[[], Network]) -> None:
    """Every planned kernel runs, within its row's tolerance; the output is the reference's, bit by bit."""
    network = make()
    decision, engine, reference = lowered(network)
    ran = engine.execution(decision.plan)
    contract(decision.plan, ran.layers, ran.stray).enforce()
    assert {layer.precision for layer in decision.plan.layers} == {"int8"}
    for batch in BATCHES:
        x = network.sample(batch)
        nodes = engine.verify([x])
        assert nodes and all(node.max_lsb <= node.allowed for node in nodes)
        (wanted,), (found,) = reference([x]), engine([x])
        assert torch.equal(found, wanted)


def test_windows_that_hang_over_their_padding_are_averaged_in_float() -> None:
    """In ceil mode with the padding counted ONNX Runtime's integer kernel divides otherwise than torch."""

    def run(m: Any, x: Tensor) -> Any:
        return m.last(F.avg_pool2d(m.first(x), 3, 2, 1, ceil_mode=True))

    network = functional((3, 10, 10), run, first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 4, 1))
    decision, engine, reference = lowered(network)
    ran = {layer.node: layer for layer in engine.execution(decision.plan).layers}
    assert ran["avg_pool2d"].kernel == "AveragePool"
    x = network.sample(2)
    assert torch.equal(engine([x])[0], reference([x])[0])


def test_a_pool_with_a_divisor_of_its_own_is_refused() -> None:
    network = functional((3, 8, 8), lambda m, x: F.avg_pool2d(x, 2, divisor_override=3))
    with pytest.raises(LoweringError, match="divisor_override"):
        Ort().lower(trace(network.model, network.sample(2)))


@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
def test_a_transformer_block(recipe: str) -> None:
    """Linears are exact; the float ops between them are within float32, which rarely turns a code over."""
    network = attention()
    decision, engine, reference = lowered(network, recipe)
    ran = engine.execution(decision.plan)
    contract(decision.plan, ran.layers, ran.stray).enforce()
    assert sum(layer.precision == "int8" for layer in ran.layers) == 6
    for batch in BATCHES:
        x = network.sample(batch)
        nodes = engine.verify([x])
        assert len(nodes) == 6 and all(node.max_lsb <= node.allowed for node in nodes)
        (wanted,), (found,) = reference([x]), engine([x])
        span = wanted.max() - wanted.min()
        assert ((found - wanted).abs().max() / span * 255).item() < 1


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, float("inf"), 1e-42], ids=str)
def test_extreme_inputs_saturate_as_the_reference_says(value: float, saturated: "Pair") -> None:
    engine, reference = saturated
    x = torch.full((2, 20), value)
    assert torch.equal(engine([x])[0], reference([x])[0])


Pair = tuple[OrtExecutable, ReferenceExecutable]


@pytest.fixture(scope="module")
def saturated() -> Pair:
    _, engine, reference = lowered(perceptron())
    return engine, reference
