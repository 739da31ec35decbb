"""Every rule keeps its law, fires on its own left side, and says why where it does not."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from qcompiler.ir import Graph, evaluate, format_text, trace
from qcompiler.passes.rules import RULES
from qcompiler.passes.rules.sample import normal, several
from qcompiler.rewrite import EXACT, Law, Rule, apply_rules, reals

aten = torch.ops.aten
by_name = {rule.name: rule for rule in RULES}
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


class Before(nn.Module):
    """The left side of a rule as a model: `x` is its input, the other tensors are its buffers."""

    def __init__(self, rule: Rule, sample: dict[str, Any], inputs: tuple[str, ...] = ("x",)) -> None:
        super().__init__()
        self.rule, self.sample, self.inputs = rule, sample, inputs
        for name, given in sample.items():
            if isinstance(given, Tensor) and name not in inputs:
                self.register_buffer(f"held_{name}", given)

    def forward(self, *inputs: Tensor) -> Any:
        given = dict(zip(self.inputs, inputs, strict=True))
        return self.rule.before(
            *(given.get(name, getattr(self, f"held_{name}", value)) for name, value in self.sample.items())
        )


def sampled(rule: Rule, seed: int = 0) -> dict[str, Any]:
    sample = next(iter(rule.domain(Generator().manual_seed(seed))))
    return dict(zip(inspect.signature(rule.before).parameters, sample, strict=True))


def traced(rule: Rule, sample: dict[str, Any], inputs: tuple[str, ...] = ("x",)) -> Graph:
    return trace(Before(rule, sample, inputs).eval(), tuple(sample[name] for name in inputs))


def outcomes(graph: Graph) -> list[tuple[str, str]]:
    return [(note.rule, note.outcome) for note in graph.notes if note.rule != "dynamic-batch"]


@every_rule
@pytest.mark.parametrize("seed", [0, 1])
def test_law(rule: Rule, seed: int) -> None:
    assert rule.check(Generator().manual_seed(seed)) is None


@every_rule
def test_domain_is_float64_and_has_samples(rule: Rule) -> None:
    samples = list(rule.domain(Generator().manual_seed(0)))
    assert len(samples) >= 2
    assert {part.dtype for sample in samples for part in sample if isinstance(part, Tensor)} == {
        torch.float64
    }


@every_rule
def test_fires_on_its_own_left_side(rule: Rule) -> None:
    sample = sampled(rule)
    graph = traced(rule, sample)
    rewritten = apply_rules(graph, [rule])
    assert outcomes(rewritten) == [(rule.name, "applied")]
    (before,), (after,) = evaluate(graph, [sample["x"]]), evaluate(rewritten, [sample["x"]])
    assert rule.law.broken_by(before, after) is None
    assert "getattr" not in format_text(rewritten)


def test_names_are_unique() -> None:
    assert len(by_name) == len(RULES)


@pytest.mark.parametrize(
    ("after", "law", "complaint"),
    [
        (lambda x: x + 1e-9, EXACT, "is not exact"),
        (lambda x: x * (1 + 1e-12), reals(64), "is not within 64 ulp"),
        (lambda x: x[:1], reals(64), "shapes differ"),
        (lambda x: x * torch.nan, reals(64), "nan"),
        (lambda x: x.float(), reals(1 << 40), "float32"),
    ],
)
def test_a_lying_rule_is_reported(after: Any, law: Law, complaint: str) -> None:
    lying = Rule(name="lie", before=lambda x: x * 1, after=after, domain=several(points), law=law)
    problem = lying.check(Generator().manual_seed(0))
    assert problem is not None and "lie" in problem and complaint in problem


def test_every_result_of_a_rule_must_obey_its_law() -> None:
    lying = Rule(
        name="lie", before=lambda x: (x * 1, x * 2), after=lambda x: (x, x * 3), domain=several(points)
    )
    problem = lying.check(Generator().manual_seed(0))
    assert problem is not None and "is not exact" in problem


def points(generator: Generator) -> tuple[Tensor]:
    return (normal(generator, 4, 5),)


class Function(nn.Module):
    def __init__(self, function: Any, **held: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in held.items():
            self.register_buffer(name, tensor)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args, **dict(self.named_buffers()))


def rewritten(function: Any, rule: str, *inputs: Tensor, **held: Tensor) -> Graph:
    return apply_rules(trace(Function(function, **held).eval(), inputs), [by_name[rule]])


def written_gelu(x: Tensor) -> Tensor:
    return (1.0 + torch.erf(x / 2**0.5)) * (0.5 * x)


@pytest.mark.parametrize(
    ("function", "rule", "becomes"),
    [(lambda x: torch.sigmoid(x) * x, "silu", "silu"), (written_gelu, "gelu", "gelu")],
)
def test_operands_of_commutative_ops_match_in_either_order(function: Any, rule: str, becomes: str) -> None:
    x = torch.randn(3, 4)
    graph = rewritten(function, rule, x)
    assert outcomes(graph) == [(rule, "applied")]
    assert f"aten.{becomes}.default" in format_text(graph)
    torch.testing.assert_close(evaluate(graph, [x])[0], function(x))


def test_a_gain_may_stand_on_either_side() -> None:
    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return torch.rsqrt(1e-6 + x.pow(2).mean(-1, True)) * x * gain

    assert outcomes(rewritten(norm, "rms-norm", torch.randn(3, 4), gain=torch.rand(4))) == [
        ("rms-norm", "applied")
    ]


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (lambda x: torch.sigmoid(x) * (x + 1), "silu"),
        (lambda x: 0.5 * x * (torch.erf(x / 1.5) + 1), "gelu"),
        (lambda x: torch.clamp(x, 0.5), "clamp-is-relu"),
        (lambda x: torch.clamp(x, 0, 6), "clamp-is-relu"),
        (lambda x: torch.clamp_min(x, 1), "clamp-min-is-relu"),
    ],
)
def test_something_that_only_looks_alike_is_left_alone(function: Any, rule: str) -> None:
    assert outcomes(rewritten(function, rule, torch.randn(3, 4))) == []


def refusal(graph: Graph, rule: str) -> str:
    (note,) = [note for note in graph.notes if (note.rule, note.outcome) == (rule, "refused")]
    assert note.reason
    return note.reason


def test_batch_norm_with_statistics_of_run_time_is_refused() -> None:
    rule = by_name["batch-norm-into-conv2d"]
    graph = traced(rule, sampled(rule), ("x", "mean", "var"))
    assert refusal(apply_rules(graph, [rule]), rule.name) == "'mean' is computed at run time, not a constant"


@pytest.mark.parametrize(
    ("rule", "inputs", "reason"),
    [
        ("batch-norm-into-linear", ("x", "w"), "'w' is computed at run time"),
        ("scale-into-conv", ("x", "w"), "'w' is computed at run time"),
        ("bias-into-linear", ("x", "w"), "'w' is computed at run time"),
        ("rms-norm", ("x", "weight"), "'weight' is computed at run time"),
    ],
)
def test_weights_of_run_time_are_refused(rule: str, inputs: tuple[str, ...], reason: str) -> None:
    found = by_name[rule]
    assert reason in refusal(apply_rules(traced(found, sampled(found), inputs), [found]), rule)


@pytest.mark.parametrize(
    ("rule", "inputs"),
    [
        ("scale-into-conv", ("x", "c")),
        ("bias-into-linear", ("x", "c")),
        ("addmm-is-linear", ("x", "b", "w")),
        ("matmul-is-linear", ("x", "w")),
    ],
)
def test_what_stands_for_a_constant_only_matches_one(rule: str, inputs: tuple[str, ...]) -> None:
    """A residual add is no bias, and a product of two activations no linear: nothing is refused there."""
    found = by_name[rule]
    assert outcomes(apply_rules(traced(found, sampled(found), inputs), [found])) == []


@pytest.mark.parametrize(
    ("rule", "changed", "reason"),
    [
        ("scale-into-conv", {"c": torch.rand(7, dtype=torch.float64)}, "varies along more than the 6"),
        ("bias-into-linear", {"c": torch.rand(3, 1, dtype=torch.float64)}, "varies along more than the 6"),
        ("bias-into-linear", {"c": torch.rand(1, 1, 1, 6, dtype=torch.float64)}, "6] instead of f64[1, "),
        ("pad-into-conv", {"pad": [1, 2, 1, 1]}, "not the same on both sides"),
        ("pad-into-conv", {"pad": [-1, -1, 0, 0]}, "not the same on both sides"),
        ("pad-into-conv", {"pad": [1, 1]}, "not the same on both sides"),
        ("global-pool", {"axes": [1, 2]}, "not height and width"),
        ("global-pool", {"axes": [1, 2, 3]}, "not height and width"),
        ("global-pool", {"x": torch.rand(2, 3, 4, dtype=torch.float64), "axes": [1, 2]}, "height and width"),
        ("adaptive-pool-is-global", {"x": torch.rand(2, 3, 4, dtype=torch.float64)}, "not [N, C, H, W]"),
        ("matmul-is-linear", {"w": torch.rand(2, 8, 6, dtype=torch.float64)}, "3 dimensions, not 2"),
        ("rms-norm", {"weight": torch.rand(5, 16, dtype=torch.float64)}, "not a vector"),
        ("addmm-is-linear", {"b": torch.rand(5, 6, dtype=torch.float64)}, "not a vector"),
    ],
)
def test_operands_that_do_not_fit_are_refused(rule: str, changed: dict[str, Any], reason: str) -> None:
    found = by_name[rule]
    sample = sampled(found) | changed
    if rule == "scale-into-conv":
        sample["x"], sample["stride"], sample["padding"] = sample["x"][..., :9, :9], [1, 1], [0, 0]
        sample["dilation"] = [1, 1]
    graph = traced(found, sample)
    rewritten = apply_rules(graph, [found])
    assert reason in refusal(rewritten, rule)
    assert format_text(rewritten) == format_text(graph)


def test_a_contraction_with_another_reader_is_not_folded() -> None:
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.norm(y), y

    rule = by_name["batch-norm-into-conv2d"]
    graph = apply_rules(trace(Tapped().eval(), torch.randn(2, 3, 5, 5)), [rule])
    assert "another reader" in refusal(graph, rule.name)


def test_mixed_dtypes_are_refused_where_the_result_would_change_type() -> None:
    def before(x: Tensor) -> Any:
        return aten.neg.default(x)

    def after(x: Tensor) -> Any:
        return aten._to_copy.default(x, dtype=torch.float64)

    rule = Rule(name="cast", before=before, after=after, domain=several(points))
    graph = trace(Function(torch.neg).eval(), torch.randn(2, 3))
    changed = apply_rules(graph, [rule])
    assert re.fullmatch(r"the result would be f64\[.*, 3\] instead of f32\[.*, 3\]", refusal(changed, "cast"))
    assert format_text(changed) == format_text(graph)
