"""Operators of ONNX Runtime that the ONNX standard does not have, for use in translations.

    MatMulIntegerToFloat(q, w, s, s_w, z, None, b)  -->  one node of domain com.microsoft

The exporter writes only operators with a schema; these schemas say no more than names, order and arity.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

DOMAIN = "com.microsoft"

# Operator -> inputs (optional ones end in "?"), outputs, integer or float attributes.
OPERATORS: Mapping[str, tuple[Sequence[str], Sequence[str], Mapping[str, str]]] = {
    "MatMulIntegerToFloat": (
        ("A", "B", "a_scale", "b_scale", "a_zero_point?", "b_zero_point?", "bias?"), ("Y",), {},
    ),
    "GroupQueryAttention": (
        ("query", "key?", "value?", "past_key?", "past_value?", "seqlens_k", "total_sequence_length",
         "cos_cache?", "sin_cache?"),
        ("output", "present_key", "present_value"),
        {"num_heads": "int", "kv_num_heads": "int", "do_rotary": "int", "scale": "float"},
    ),
}  # fmt: skip

TYPES = [
    f"tensor({name})"
    for name in ("float", "double", "float16", "int8", "uint8", "int32", "int64", "bool", "int4", "uint4")
]


@cache
def contrib(name: str) -> Any:
    """The operator as an onnxscript function that may be called inside a translation."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    inputs, outputs, attributes = OPERATORS[name]
    kinds = {"int": OpSchema.AttrType.INT, "float": OpSchema.AttrType.FLOAT}

    def parameter(text: str) -> Any:
        plain, option = text.removesuffix("?"), OpSchema.FormalParameterOption
        # Every parameter has a type of its own: nothing is promised about how they hang together.
        return OpSchema.FormalParameter(
            plain, f"T_{plain}", param_option=option.Optional if text.endswith("?") else option.Single
        )

    schema = OpSchema(
        name, DOMAIN, 1,
        inputs=[parameter(text) for text in inputs],
        outputs=[parameter(text) for text in outputs],
        type_constraints=[(f"T_{text.removesuffix('?')}", TYPES, "") for text in (*inputs, *outputs)],
        attributes=[OpSchema.Attribute(key, kinds[kind], required=False) for key, kind in attributes.items()],
    )  # fmt: skip
    return Op(Opset(DOMAIN, 1), name, schema)
