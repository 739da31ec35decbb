"""Of quantize_rows and quantize_long_rows."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

POINTERS = {"int8": "*i8", "e4m3": "*fp8e4nv", "e5m2": "*fp8e5"}


def types(x: str, codes: str) -> Types:
    sizes = ("columns", "width", "stride_x", "stride_codes")
    pointers = {"x": x, "codes": codes, "scales": "*fp32"}
    return Types(arguments={**pointers, **dict.fromkeys(sizes, "i32")}, aligned=frozenset(sizes))


def uses(row: Configuration, capability: int) -> list[Use]:
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    return [
        Use(name=name, types=types("*bf16", POINTERS[name]), constants=FORMATS[name])
        for name in formats(capability)
    ]


def formats(capability: int) -> tuple[str, str]:
    """Those that are compiled: one of integers, one of floats that the device knows."""
    return ("int8", "e4m3") if capability >= 90 else ("int8", "e5m2")


ROWS: Mapping[str, Signature] = dict.fromkeys(
    ("quantize_rows", "quantize_long_rows"), Signature(module="quantize", uses=uses)
)
