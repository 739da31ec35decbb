"""Of quantize_known."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures import rows
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

SIZES = ("columns", "width", "stride_x", "stride_codes")


def types(x: str, codes: str, *, by_row: bool) -> Types:
    """By maxima of rows, or by one scale."""
    pointers = {
        "x": x, "codes": codes, "amax": "*fp32" if by_row else None, "scales": "*fp32" if by_row else None,
        "scale": None if by_row else "*fp32",
    }  # fmt: skip
    return Types(arguments={**pointers, **dict.fromkeys(SIZES, "i32")}, aligned=frozenset(SIZES))


def uses(row: Configuration, capability: int) -> list[Use]:
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    integer, floating = rows.formats(capability)
    return [
        Use(
            name=f"{format} by {'amax' if by_row else 'scale'}",
            types=types("*bf16", rows.POINTERS[format], by_row=by_row),
            constants=FORMATS[format],
        )
        for format, by_row in ((integer, True), (integer, False), (floating, True))
    ]


KNOWN: Mapping[str, Signature] = {"quantize_known": Signature(module="known", uses=uses)}
