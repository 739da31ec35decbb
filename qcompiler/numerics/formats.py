"""The table of formats, and their names."""

import re
from typing import TypeAlias, get_args

from qcompiler.errors import RecipeError
from qcompiler.numerics.integer import IntFormat
from qcompiler.numerics.minifloat import FloatFormat, Specials, default_bias

Format: TypeAlias = IntFormat | FloatFormat


def _int(bits: int, *, signed: bool) -> IntFormat:
    return IntFormat(bits=bits, signed=signed)


def _float(
    exponent_bits: int, mantissa_bits: int, specials: Specials, bias: int | None = None
) -> FloatFormat:
    usual = default_bias(exponent_bits, specials) if bias is None else bias
    return FloatFormat(
        exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, bias=usual, specials=specials
    )


FORMATS: dict[str, Format] = {
    **{f"int{bits}": _int(bits, signed=True) for bits in (*range(2, 17), 32)},
    **{f"uint{bits}": _int(bits, signed=False) for bits in range(2, 17)},
    "e4m3": _float(4, 3, "fn"),  # OCP OFP8
    "e5m2": _float(5, 2, "ieee"),  # OCP OFP8
    "e4m3fnuz": _float(4, 3, "fnuz"),
    "e5m2fnuz": _float(5, 2, "fnuz"),
    "e3m4": _float(3, 4, "fn"),
    "e2m5": _float(2, 5, "fn"),
    "e3m2": _float(3, 2, "none"),  # OCP MX FP6
    "e2m3": _float(2, 3, "none"),  # OCP MX FP6
    "e2m1": _float(2, 1, "none"),  # OCP MX FP4
}
"""Every format with a short name. Others can be spelled out: see `parse_format`."""

_SPLIT = re.compile(
    r"(?:float(?P<bits>\d+)_)?e(?P<e>[1-9]\d*)m(?P<m>\d+)(?:b(?P<bias>-?\d+))?(?P<specials>[a-z]*)"
)


def parse_format(name: str) -> Format:
    """The format of that name: a row of `FORMATS`, or any split.

    "int8", "e4m3"                           -->  the row of the table
    "e{E}m{M}"                               -->  none under 8 bits, fn at 8, ieee above
    "float{bits}_e{E}m{M}[b{bias}][specials]" -->  as `FloatFormat.name` writes it: without a word for the
                                                  specials, none under 8 bits and ieee from 8 bits on

    parse_format(format.name) = format        up to `restricted`, which is not part of a name
    """
    if name in FORMATS:
        return FORMATS[name]
    match = _SPLIT.fullmatch(name)
    if match is None or match["specials"] not in ("", *get_args(Specials)):
        raise RecipeError(
            f'unknown format "{name}"', fix=f'use one of {", ".join(FORMATS)}, or "e4m3" with any other split'
        )
    exponent_bits, mantissa_bits = int(match["e"]), int(match["m"])
    bits = 1 + exponent_bits + mantissa_bits
    if match["bits"] is not None and int(match["bits"]) != bits:
        raise RecipeError(f'format "{name}" contradicts itself', why=f"its fields add up to {bits} bits")
    unsaid: Specials = "none" if bits < 8 else "fn" if bits == 8 and match["bits"] is None else "ieee"
    specials = next((word for word in get_args(Specials) if word == match["specials"]), unsaid)
    bias = None if match["bias"] is None else int(match["bias"])
    return _float(exponent_bits, mantissa_bits, specials, bias)
