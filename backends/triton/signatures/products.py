"""Of int8_matmul, fp8_matmul, and product_total, which adds their sums of parts."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.configurations.products import PERSISTENT, SPLIT
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

SIZES = ("M", "N", "K", "stride_a", "stride_b", "stride_out", "stride_residual")
TOTALS = ("parts", "M", "N", "stride_out", "stride_residual")
CODES = {"int8_matmul": "*i8", "fp8_matmul": "*fp8e4nv"}
SUMS = {"*i8": "*i32", "*fp8e4nv": "*fp32"}
"""By codes, the type in which sums of parts are left."""


def types(
    codes: str,
    out: str,
    *,
    by_row: bool = True,
    bias: bool = False,
    residual: str | None = None,
    recoded: bool = False,
    amax: bool = False,
) -> Types:
    """M is any, other sizes are multiples of 16. by_row: whether rows of a have scales of their own."""
    pointers = {
        "a": codes, "b": codes, "out": out, "a_scale": "*fp32" if by_row else None, "b_scale": "*fp32",
        "bias": "*fp32" if bias else None, "residual": residual,
        "scale": "*fp32" if recoded else None, "amax": "*i32" if amax else None,
    }  # fmt: skip
    return Types(arguments={**pointers, **dict.fromkeys(SIZES, "i32")}, aligned=frozenset(SIZES) - {"M"})


def beside_parts(of: Types) -> Types:
    """A product's, with memory for sums of parts."""
    partial = SUMS[str(of.arguments["a"])]
    return Types(arguments={**of.arguments, "partial": partial}, aligned=of.aligned)


def of_total(of: Types) -> Types:
    """What adds those parts is given all that a product's epilogue is."""
    held = beside_parts(of).arguments
    pointers = {name: kind for name, kind in held.items() if name not in ("a", "b", *SIZES)}
    sizes = dict.fromkeys(TOTALS, "i32")
    return Types(arguments={**pointers, **sizes}, aligned=frozenset(TOTALS) - {"M", "parts"})


# ---------------------------------------------------------------- epilogues


def layer(codes: str) -> Use:
    return Use(types=types(codes, "*bf16", bias=True), constants={"ACTIVATION": "none"})


def beside_residual(codes: str, activation: str) -> Use:
    return Use(
        name=f"{activation} residual",
        types=types(codes, "*bf16", bias=True, residual="*bf16"),
        constants={"ACTIVATION": activation},
    )


def handing_on(kernel: str) -> Use:
    """An int8 layer reads some by one scale, as its reader does; FP8 of one is not planned."""
    codes = CODES[kernel]
    by_row = kernel != "int8_matmul"
    return Use(
        name="gelu residual codes",
        types=types(codes, codes, by_row=by_row, bias=True, residual="*bf16", recoded=True),
        constants={"ACTIVATION": "gelu"},
    )


def with_maxima(codes: str) -> Use:
    return Use(
        name="gelu residual amax",
        types=types(codes, "*bf16", bias=True, residual="*bf16", amax=True),
        constants={"ACTIVATION": "gelu"},
    )


# ---------------------------------------------------------------- kernels


def uses(row: Configuration, capability: int) -> list[Use]:
    """Layers in bfloat16; gradients in float32, which are added to what is there by a heavy epilogue.

    What leaves sums of parts has no epilogue; of what walks over tiles, one of each kind is compiled.
    """
    codes, words = CODES[row.kernel], row.mode.split()
    if SPLIT in words:
        plain = layer(codes)
        return [Use(types=beside_parts(plain.types), constants=plain.constants)]
    if PERSISTENT in words:
        return [beside_residual(codes, "gelu") if row.heavy else layer(codes)]
    gradient = Use(
        name="gradient added" if row.heavy else "gradient",
        types=types(codes, "*fp32", residual="*fp32" if row.heavy else None),
        constants={"ACTIVATION": "none"},
    )
    gradients = [] if row.mode == "fast" else [gradient]  # "fast" is not the default of backward
    if not row.heavy:
        calibrated = Use(
            name="relu, one scale",
            types=types(codes, "*bf16", by_row=False, bias=True),
            constants={"ACTIVATION": "relu"},
        )
        return [layer(codes), *([calibrated] if row.kernel == "int8_matmul" else []), *gradients]
    layers = [beside_residual(codes, name) for name in ("gelu", "silu")]
    # The modes of FP8 have one epilogue: each is compiled with half of it.
    handing, peaked = handing_on(row.kernel), with_maxima(codes)
    onward = {"fast": [handing], "promote128": [peaked]}.get(row.mode, [handing, peaked])
    return [*layers, *gradients, *onward]


def total(row: Configuration, capability: int) -> list[Use]:
    """Of sums of int8, and of FP8, each with one epilogue."""
    of = [handing_on("int8_matmul"), with_maxima("*fp8e4nv")] if row.heavy else [layer("*i8")]
    return [Use(name=one.name, types=of_total(one.types), constants=one.constants) for one in of]


PRODUCTS: Mapping[str, Signature] = {
    **{kernel: Signature(module=kernel, uses=uses) for kernel in ("int8_matmul", "fp8_matmul")},
    "product_total": Signature(module="parts", uses=total),
}
