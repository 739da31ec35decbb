"""How kernels are compiled, as data: a file of rows for each family of kernels."""

from qcompiler.backends.triton.configurations.attention import ATTENTION
from qcompiler.backends.triton.configurations.base import SHARED, Bounds, Configuration, shared_of
from qcompiler.backends.triton.configurations.blocks import BLOCKS
from qcompiler.backends.triton.configurations.both import BOTH
from qcompiler.backends.triton.configurations.hadamard import HADAMARD
from qcompiler.backends.triton.configurations.known import KNOWN
from qcompiler.backends.triton.configurations.norms import NORMS
from qcompiler.backends.triton.configurations.products import PRODUCTS
from qcompiler.backends.triton.configurations.rows import ROWS
from qcompiler.backends.triton.configurations.storage import STORAGE
from qcompiler.backends.triton.configurations.weight_only import WEIGHT_ONLY
from qcompiler.errors import TargetError

__all__ = ["CONFIGURATIONS", "SHARED", "Bounds", "Configuration", "chosen", "shared_of"]

CONFIGURATIONS: tuple[Configuration, ...] = (
    *ROWS,
    *BOTH,
    *NORMS,
    *HADAMARD,
    *KNOWN,
    *PRODUCTS,
    *BLOCKS,
    *STORAGE,
    *ATTENTION,
    *WEIGHT_ONLY,
)


def chosen(kernel: str, capability: int, *, mode: str = "", heavy: bool = False) -> Configuration:
    """The row for the latest compute capability not beyond the device's; TargetError without one."""
    found = [row for row in CONFIGURATIONS if (row.kernel, row.mode, row.heavy) == (kernel, mode, heavy)]
    fit = [row for row in found if row.capability <= capability <= row.latest]
    if not fit:
        known = ", ".join(str(row.capability / 10) for row in found)
        raise TargetError(
            " ".join(f"{kernel} {mode} on a device of compute capability {capability / 10}".split()),
            why=f"it has configurations for {known}" if known else "there is no such kernel",
            fix="use int8, or keep the op in float",
        )
    return max(fit, key=lambda row: row.capability)
