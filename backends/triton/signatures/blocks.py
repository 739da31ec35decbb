"""Of quantize_blocks and fp8_block_matmul."""

from collections.abc import Mapping

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures import products
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.static import Types

CODES = "*fp8e4nv"
SIZES = ("M", "K", "width", "stride_x", "stride_codes")


def quantize_use(x: str) -> Use:
    """Of floats; M is any, other sizes are multiples of 16."""
    from qcompiler.backends.triton.kernels.quantize import FORMATS

    types = Types(
        arguments={"x": x, "codes": CODES, "scales": "*fp32", **dict.fromkeys(SIZES, "i32")},
        aligned=frozenset(SIZES) - {"M"},
    )
    return Use(types=types, constants=FORMATS["e4m3"])


def product_use(out: str, activation: str, *, residual: bool) -> Use:
    return Use(
        name=" ".join([activation] * residual),
        types=products.types(CODES, out, bias=True, residual=out if residual else None),
        constants={"ACTIVATION": activation},
    )


def quantize_uses(row: Configuration, capability: int) -> list[Use]:
    return [quantize_use("*bf16")]


def product_uses(row: Configuration, capability: int) -> list[Use]:
    return [product_use("*bf16", "gelu" if row.heavy else "none", residual=row.heavy)]


BLOCKS: Mapping[str, Signature] = {
    "quantize_blocks": Signature(module="blocks", uses=quantize_uses),
    "fp8_block_matmul": Signature(module="blocks", uses=product_uses),
}
