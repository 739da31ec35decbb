"""Of amax_both and quantize_both."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures import rows
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types
from qcompiler.numerics.philox import Purpose

SIZES = ("M", "K", "width", "turned_width", "stride_x", "stride_codes", "stride_turned")
BITS = {"rows": "*i32", "columns": "*i32"}


def types(x: str, codes: str, *, drawn: bool) -> Types:
    """Of codes and turned codes; M is any, other sizes are multiples of 16."""
    scales = {"scales": "*fp32", "turned_scales": "*fp32"}
    pointers = {"x": x, **BITS, "codes": codes, "turned": codes, **scales}
    draws = {"key": "*i64" if drawn else None, "tensor": "i32"}
    return Types(
        arguments={**pointers, **dict.fromkeys(SIZES, "i32"), **draws}, aligned=frozenset(SIZES) - {"M"}
    )


def amax_uses(row: Configuration, capability: int) -> list[Use]:
    sizes = dict.fromkeys(("M", "K", "stride_x"), "i32")
    return [Use(types=Types(arguments={"x": "*bf16", **BITS, **sizes}, aligned=frozenset({"K", "stride_x"})))]


def uses(row: Configuration, capability: int) -> list[Use]:
    """The nearest codes of either kind; of those that are drawn, integers."""
    names = ["int8"] if row.mode else rows.formats(capability)
    return [use("*bf16", name, drawn=bool(row.mode)) for name in names]


def use(x: str, format: str, *, drawn: bool) -> Use:
    """Of floats in codes of a format."""
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    purposes = {"ROW_PURPOSE": int(Purpose.GRAD_INPUT), "COLUMN_PURPOSE": int(Purpose.GRAD_WEIGHT)}
    return Use(
        name=format,
        types=types(x, rows.POINTERS[format], drawn=drawn),
        constants={**FORMATS[format], **purposes},
    )


BOTH: Mapping[str, Signature] = {
    "amax_both": Signature(module="quantize_both", uses=amax_uses),
    "quantize_both": Signature(module="quantize_both", uses=uses),
}
