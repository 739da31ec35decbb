"""Of int8_matmul and fp8_matmul."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

SIZES = ("M", "N", "K", "stride_a", "stride_b", "stride_out", "stride_residual")
CODES = {"int8_matmul": "*i8", "fp8_matmul": "*fp8e4nv"}


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


def uses(row: Configuration, capability: int) -> list[Use]:
    """Layers in bfloat16; gradients in float32, which are added to what is there by a heavy epilogue.

    An int8 layer that hands on codes reads some by one scale, as its reader does; FP8 of one is not planned.
    """
    codes, plain = CODES[row.kernel], {"ACTIVATION": "none"}
    gradient = Use(
        name="gradient added" if row.heavy else "gradient",
        types=types(codes, "*fp32", residual="*fp32" if row.heavy else None),
        constants=plain,
    )
    gradients = [] if row.mode == "fast" else [gradient]  # "fast" is not the default of backward
    if not row.heavy:
        calibrated = Use(
            name="relu, one scale",
            types=types(codes, "*bf16", by_row=False, bias=True),
            constants={"ACTIVATION": "relu"},
        )
        layer = Use(types=types(codes, "*bf16", bias=True), constants=plain)
        return [layer, *([calibrated] if row.kernel == "int8_matmul" else []), *gradients]
    layers = [
        Use(
            name=f"{name} residual",
            types=types(codes, "*bf16", bias=True, residual="*bf16"),
            constants={"ACTIVATION": name},
        )
        for name in ("gelu", "silu")
    ]
    gelu = {"ACTIVATION": "gelu"}
    to_codes = types(
        codes, codes, by_row=row.kernel != "int8_matmul", bias=True, residual="*bf16", recoded=True
    )
    with_maxima = types(codes, "*bf16", bias=True, residual="*bf16", amax=True)
    handing = Use(name="gelu residual codes", types=to_codes, constants=gelu)
    peaked = Use(name="gelu residual amax", types=with_maxima, constants=gelu)
    # The modes of FP8 have one epilogue: each is compiled with half of it.
    onward = {"fast": [handing], "promote128": [peaked]}.get(row.mode, [handing, peaked])
    return [*layers, *gradients, *onward]


PRODUCTS: Mapping[str, Signature] = {
    kernel: Signature(module=kernel, uses=uses) for kernel in ("int8_matmul", "fp8_matmul")
}
