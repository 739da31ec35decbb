"""Of weight_only_gemv, weight_only_gemm and weight_only_total."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.layouts import Layout, layout_named
from qcompiler.backends.triton.ops.weight_only import RUN
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

MODULE = "weight_only"
FLOATS = ("x", "scales", "bias", "residual", "out")
SIZES = ("M", "N", "width", "runs", "groups_of_part", "float32",
         "stride_x", "stride_out", "stride_residual")  # fmt: skip
ALIGNED = frozenset({"N", "width", "float32", "stride_x", "stride_out", "stride_residual"})


def floats(capability: int) -> str:
    """What is compiled: on 8.0 float16, since bfloat16 has no difference there but by way of `fma`.

    That is exact for codes, but would not be told from one that is not.
    """
    return "*bf16" if capability >= 90 else "*fp16"


def types(kind: str, *, zeros: bool = False, residual: bool = False, out: str = "") -> Types:
    """Of both products; each takes those of its arguments. float32 is a multiple of 16, as its bits are.

    out: of another kind than the others.
    """
    pointers: dict[str, str | None] = dict.fromkeys(FLOATS, kind)
    pointers |= {"w": "*u8", "zeros": "*u8" if zeros else None}
    pointers |= {"out": out} if out else {}
    pointers |= {} if residual else {"residual": None}
    return Types(arguments={**pointers, **dict.fromkeys(SIZES, "i32")}, aligned=ALIGNED)


def use(layout: str, types: Types, *, activation: str = "none", gated: bool = False, split: bool = False,
        line: bool = False) -> Use:  # fmt: skip
    known: Layout = layout_named(layout)
    words = (
        layout,
        "zeros" * (types.arguments["zeros"] is not None),
        "gate" * gated,
        activation,
        "residual" * (types.arguments["residual"] is not None),
        "split" * split,
    )
    constants = {
        "BITS": known.bits,
        "G": known.group,
        "GATED": gated,
        "SPLIT": split,
        "ACTIVATION": activation,
    }
    runs = {"RUN": RUN, "HALVINGS": (RUN // known.group).bit_length() - 1} if line else {}
    return Use(name=" ".join(filter(None, words)), types=types, constants={**constants, **runs})


def gemv(row: Configuration, capability: int) -> list[Use]:
    kind = floats(capability)
    return [
        use("w4h_g128", types(kind), line=True),
        use("w4h_g64", types(kind, zeros=True), activation="silu", gated=True, line=True),
        use("w2h_g64", types(kind), line=True),
        use("w8_g128", types(kind), line=True),
    ]


def gemm(row: Configuration, capability: int) -> list[Use]:
    """Other widths and zero points, and a gate by itself, where there are few rows: there few bits gain."""
    kind = floats(capability)
    if row.heavy:
        residuals = (True, False) if row.mode == "few" else (True,)
        return [
            use("w4h_g128", types(kind, residual=residual), activation="silu", gated=True)
            for residual in residuals
        ]
    if row.mode == "few":
        return [use("w4h_g128", types(kind)), use("w8_g128", types(kind))]
    if row.mode == "few, short groups":
        return [
            use("w4h_g64", types(kind, zeros=True, out="*fp32"), split=True),
            use("w2h_g64", types(kind)),
        ]
    return [use("w4h_g128", types(kind))]


def total(row: Configuration, capability: int) -> list[Use]:
    kind = floats(capability)
    pointers = {"sums": "*fp32", "bias": kind, "residual": None, "out": kind}
    sizes = dict.fromkeys(("parts", "M", "N", "stride_out", "stride_residual"), "i32")
    return [
        Use(
            name="gate silu",
            types=Types(arguments={**pointers, **sizes}, aligned=ALIGNED),
            constants={"GATED": True, "ACTIVATION": "silu"},
        )
    ]


WEIGHT_ONLY: Mapping[str, Signature] = {
    "weight_only_gemv": Signature(module=MODULE, uses=gemv),
    "weight_only_gemm": Signature(module=MODULE, uses=gemm),
    "weight_only_total": Signature(module=MODULE, uses=total),
}
