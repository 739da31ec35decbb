"""What is claimed of every kernel on the CPU, by name: a file for each family.

Outputs begin as poison, with a margin around them that must stay as it was. Behind every operand lies a page
that nobody may read: what a GPU calls an illegal access ends the process. Results are those of the ops'
references on the CPU: to the last bit where the numbers are stated to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.backends.triton.cases.attention import ATTENTION
from tests.backends.triton.cases.blocks import BLOCKS
from tests.backends.triton.cases.both import BOTH
from tests.backends.triton.cases.hadamard import HADAMARD
from tests.backends.triton.cases.known import KNOWN
from tests.backends.triton.cases.norms import NORMS
from tests.backends.triton.cases.onward import ONWARD
from tests.backends.triton.cases.products import PRODUCTS
from tests.backends.triton.cases.rows import ROWS
from tests.backends.triton.cases.schedules import SCHEDULES
from tests.backends.triton.cases.storage import STORAGE
from tests.backends.triton.cases.weight_only import WEIGHT_ONLY

CASES: Mapping[str, Callable[[], None]] = {
    **ROWS,
    **BOTH,
    **NORMS,
    **HADAMARD,
    **PRODUCTS,
    **BLOCKS,
    **KNOWN,
    **ONWARD,
    **STORAGE,
    **ATTENTION,
    **WEIGHT_ONLY,
    **SCHEDULES,
}
