"""What the kernels are called with, for compiling them where nobody calls them."""

from qcompiler.backends.triton.static import Types

SIZES = ("M", "N", "K", "stride_a", "stride_b", "stride_out", "stride_residual")


def product_types(codes: str, out: str, *, bias: bool = False, residual: bool = False) -> Types:
    """Of int8_matmul ("*i8") and fp8_matmul ("*fp8e4nv"); M is any, other sizes are multiples of 16."""
    pointers = {
        "a": codes, "b": codes, "out": out, "a_scale": "*fp32", "b_scale": "*fp32",
        "bias": "*fp32" if bias else None, "residual": out if residual else None,
    }  # fmt: skip
    return Types(arguments={**pointers, **dict.fromkeys(SIZES, "i32")}, aligned=frozenset(SIZES) - {"M"})


def rows_types(x: str, codes: str) -> Types:
    """Of quantize_rows and quantize_long_rows."""
    sizes = ("columns", "width", "stride_x", "stride_codes")
    pointers = {"x": x, "codes": codes, "scales": "*fp32"}
    return Types(arguments={**pointers, **dict.fromkeys(sizes, "i32")}, aligned=frozenset(sizes))
