"""What a fused attention reads is told by place, and the places are those of its schema."""

import pytest

from qcompiler.passes.training.contexts import EXACT, LINEAR, NONLINEAR, READS
from qcompiler.passes.training.operators import ATTENTION

BITS = {
    "query": NONLINEAR,
    "key": NONLINEAR,
    "value": LINEAR,
    "out": LINEAR,
    "logsumexp": EXACT,
    "attn_bias": EXACT,
}
BACKWARD = [op for op in READS if "scaled_dot_product" in str(op)]


def test_every_fused_attention_has_a_row() -> None:
    forward = {str(op).removesuffix(".default") for op in ATTENTION}
    assert {str(op).removesuffix("_backward.default") for op in BACKWARD} == forward


@pytest.mark.parametrize("op", BACKWARD, ids=str)
def test_rows_of_attention_are_those_of_its_schema(op: object) -> None:
    for place, argument in enumerate(op._schema.arguments):  # type: ignore[attr-defined]
        if argument.name in BITS:
            assert READS[op].get(place) == BITS[argument.name], argument.name
