"""Of decode_parts, decode_combined and append_kv."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

CODES = {"": "*i8", "e4m3": "*fp8e4nv", "wide": "*i8", "e4m3 wide": "*fp8e4nv"}
SIZES = {"": (128, 80), "e4m3": (128,), "wide": (256,), "e4m3 wide": (256,)}
"""Of heads, by mode."""
SCALES = {"k_scales": "*fp32", "v_scales": "*fp32"}
BETWEEN = {"sums": "*fp32", "peaks": "*fp32", "totals": "*fp32"}


def head(size: int) -> dict[str, int]:
    """What kernels know of a head's size."""
    return {"D": size, "BD": 1 << (size - 1).bit_length()}


def parts_uses(row: Configuration, capability: int) -> list[Use]:
    """Sizes of heads that are a power of two, and one that is none."""
    from qcompiler.backends.triton.ops.attention import PARTS, STEP

    codes = CODES[row.mode]
    types = Types(
        arguments={
            "q": "*bf16", "k_codes": codes, "v_codes": codes, **SCALES, "lengths": "*i32", **BETWEEN,
            "scale": "fp32", **dict.fromkeys(("heads", "group", "size", "stride_q", "stride_h"), "i32"),
        },
        aligned=frozenset({"stride_q", "stride_h"}),
    )  # fmt: skip
    return [
        Use(name=f"heads of {size}", types=types, constants={**head(size), "PARTS": PARTS, "STEP": STEP})
        for size in SIZES[row.mode]
    ]


def combined_uses(row: Configuration, capability: int) -> list[Use]:
    from qcompiler.backends.triton.ops.attention import PARTS, STEP

    types = Types(
        arguments={**BETWEEN, "lengths": "*i32", "out": "*bf16", "size": "i32", "heads": "i32"},
        aligned=frozenset(),
    )
    return [Use(types=types, constants={**head(128), "PARTS": PARTS, "STEP": STEP})]


def append_uses(row: Configuration, capability: int) -> list[Use]:
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    codes = CODES[row.mode]
    types = Types(
        arguments={
            "k": "*bf16", "v": "*bf16", "k_codes": codes, "v_codes": codes, **SCALES, "positions": "*i32",
            **dict.fromkeys(("rows", "heads", "size"), "i32"),
        },
        aligned=frozenset(),
    )  # fmt: skip
    return [Use(types=types, constants={**head(128), **FORMATS[row.mode or "int8"]})]


ATTENTION: Mapping[str, Signature] = {
    "decode_parts": Signature(module="attention", uses=parts_uses),
    "decode_combined": Signature(module="attention", uses=combined_uses),
    "append_kv": Signature(module="cache", uses=append_uses),
}
