"""What the kernels are called with, for compiling them where nobody calls them: a file for each family."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from qcompiler.backends.triton.configurations import Configuration
from qcompiler.backends.triton.signatures.attention import ATTENTION
from qcompiler.backends.triton.signatures.base import Signature, Use
from qcompiler.backends.triton.signatures.blocks import BLOCKS
from qcompiler.backends.triton.signatures.both import BOTH
from qcompiler.backends.triton.signatures.hadamard import HADAMARD
from qcompiler.backends.triton.signatures.known import KNOWN
from qcompiler.backends.triton.signatures.norms import NORMS
from qcompiler.backends.triton.signatures.products import PRODUCTS
from qcompiler.backends.triton.signatures.rows import ROWS
from qcompiler.backends.triton.signatures.storage import STORAGE
from qcompiler.backends.triton.signatures.weight_only import WEIGHT_ONLY

__all__ = ["SIGNATURES", "Signature", "Use", "kernel_named", "uses"]

SIGNATURES: Mapping[str, Signature] = {
    **ROWS,
    **BOTH,
    **NORMS,
    **HADAMARD,
    **KNOWN,
    **PRODUCTS,
    **BLOCKS,
    **STORAGE,
    **ATTENTION,
    **WEIGHT_ONLY,
}


def uses(row: Configuration, capability: int) -> list[Use]:
    """All that a configuration must serve on a device of a compute capability."""
    return SIGNATURES[row.kernel].uses(row, capability)


def kernel_named(name: str) -> Any:
    """A kernel, which imports Triton."""
    module = import_module(f"qcompiler.backends.triton.kernels.{SIGNATURES[name].module}")
    return getattr(module, name)
