"""Rotary positions, written out, become one op; models write them in two ways.

a, b = split(x)        cat(a cos - b sin, b cos + a sin)     -->   rotary(x, cos, sin)            exact
a, b = halves of x     x [cos, cos] + cat(-b, a) [sin, sin]  -->   rotary(x, cos, sin)            exact
"""

from typing import Any

import torch
from torch import Generator, Tensor

from qcompiler.ir import Draft, spec
from qcompiler.passes.rules.sample import choose, normal, several
from qcompiler.rewrite import EXACT, Match, Rule

aten = torch.ops.aten
qc = torch.ops.qcompiler
END = torch.iinfo(torch.int64).max  # of a slice that has none


def halves(x: Tensor, cos: Tensor, sin: Tensor, half: int) -> Any:
    both = aten.split.Tensor(x, half, -1)
    first, second = both[0], both[1]
    return aten.cat.default([first * cos - second * sin, second * cos + first * sin], -1)


def halves_turned(x: Any, cos: Tensor, sin: Tensor, half: int) -> Any:
    return qc.rotary.default(x, cos, sin, x.shape[1])


def sum_of_two(x: Tensor, cos: Tensor, sin: Tensor, half: int, end: int) -> Any:
    first, second = aten.slice.Tensor(x, 3, 0, half), aten.slice.Tensor(x, 3, half, end)
    return x * cos + aten.cat.default([-second, first], -1) * sin


def sum_of_two_turned(x: Any, cos: Any, sin: Any, half: int, end: int) -> Any:
    def table(both: Any) -> Any:
        return aten.reshape.default(aten.slice.Tensor(both, 3, 0, half), [both.shape[2], half])

    return qc.rotary.default(x, table(cos), table(sin), x.shape[1])


# ---------------------------------------------------------------- where


def turns_halves(match: Match, draft: Draft) -> str | None:
    """The op wants heads [B, H, T, D] and a table [T, D / 2] for all of them."""
    x, half = spec(match.bindings["x"]), match.bindings["half"]
    if x is None or len(x.shape) != 4 or x.shape[3] != 2 * half:
        return f"it does not turn the halves of a head, but {half} of {x}"
    return tables_are(match, [x.shape[2], half])


def repeats_tables(match: Match, draft: Draft) -> str | None:
    """Both halves of the tables [1, 1, T, D] must be known to be one."""
    x, half = spec(match.bindings["x"]), match.bindings["half"]
    if x is None or len(x.shape) != 4 or x.shape[3] != 2 * half:
        return f"it does not turn the halves of a head, but {half} of {x}"
    tables = [draft.tensor(match.bindings[name]) for name in ("cos", "sin")]
    if any(table is None or not torch.equal(*table.tensor_split([half], -1)) for table in tables):
        return "its tables are not known to repeat themselves in the second half of a head"
    return tables_are(match, [1, 1, x.shape[2], 2 * half])


def tables_are(match: Match, wanted: list[Any]) -> str | None:
    tables = [spec(match.bindings[name]) for name in ("cos", "sin")]
    other = next((t for t in tables if not t or [*map(str, t.shape)] != [*map(str, wanted)]), None)
    return None if other is None else f"its table is {other} and not [{', '.join(map(str, wanted))}]"


# ---------------------------------------------------------------- domain


def sample(g: Generator) -> tuple[Any, ...]:
    batch, heads, tokens, half = choose(g, 1, 2), choose(g, 1, 3), choose(g, 1, 4), 3
    return normal(g, batch, heads, tokens, 2 * half), normal(g, tokens, half), normal(g, tokens, half), half


def repeated_sample(g: Generator) -> tuple[Any, ...]:
    x, *tables, half = sample(g)
    return x, *(torch.cat([table, table], -1)[None, None] for table in tables), half, choose(g, 2 * half, END)


ROTARY = (
    Rule(
        name="rotary", before=halves, after=halves_turned, law=EXACT, domain=several(sample),
        where=turns_halves,
    ),
    Rule(
        name="rotary-as-a-sum", before=sum_of_two, after=sum_of_two_turned, law=EXACT,
        domain=several(repeated_sample), where=repeats_tables,
    ),
)  # fmt: skip
