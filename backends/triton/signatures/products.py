"""Of int8_matmul and fp8_matmul."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

SIZES = ("M", "N", "K", "stride_a", "stride_b", "stride_out", "stride_residual")
CODES = {"int8_matmul": "*i8", "fp8_matmul": "*fp8e4nv"}


def types(codes: str, out: str, *, bias: bool = False, residual: bool = False) -> Types:
    """M is any, other sizes are multiples of 16."""
    pointers = {
        "a": codes, "b": codes, "out": out, "a_scale": "*fp32", "b_scale": "*fp32",
        "bias": "*fp32" if bias else None, "residual": out if residual else None,
    }  # fmt: skip
    return Types(arguments={**pointers, **dict.fromkeys(SIZES, "i32")}, aligned=frozenset(SIZES) - {"M"})


def uses(row: Configuration, capability: int) -> list[Use]:
    """Layers in bfloat16; gradients in float32, which are added to what is there by a heavy epilogue."""
    codes, plain = CODES[row.kernel], {"ACTIVATION": "none"}
    gradient = Use(
        name="gradient added" if row.heavy else "gradient",
        types=types(codes, "*fp32", residual=row.heavy),
        constants=plain,
    )
    gradients = [] if row.mode == "fast" else [gradient]  # "fast" is not the default of backward
    if not row.heavy:
        return [Use(types=types(codes, "*bf16", bias=True), constants=plain), *gradients]
    layers = [
        Use(
            name=f"{name} residual",
            types=types(codes, "*bf16", bias=True, residual=True),
            constants={"ACTIVATION": name},
        )
        for name in ("gelu", "silu")
    ]
    return [*layers, *gradients]


PRODUCTS: Mapping[str, Signature] = {
    kernel: Signature(module=kernel, uses=uses) for kernel in ("int8_matmul", "fp8_matmul")
}
