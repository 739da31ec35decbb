"""What storing and computing take on a device, measured where they will run."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from qcompiler.ir import storage as _  # noqa: F401 - registers the operators
from qcompiler.numerics.philox import noise_key
from qcompiler.tune.measure import interleave

SIDE = 512  # of the matrices: small enough to take milliseconds, large enough to be computed at full speed
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds to store a byte in few bits and recall it, and seconds for one operation of a product."""

    per_byte: float
    per_operation: float


@lru_cache(maxsize=8)
def speed(device: torch.device) -> Speed:
    """The figures of a device; measured once in a process, in about a tenth of a second."""
    x = torch.randn(SIDE, SIDE, device=device)
    key = noise_key(0).to(device)
    layout = ([SIDE, SIDE], [SIDE, 1], x.dtype)
    ops = torch.ops.qcompiler

    def store_and_recall() -> None:
        ops.recall(*ops.store(x, key, 0, 4), 4, *layout)

    timing = interleave({"store": store_and_recall, "product": lambda: x @ x}, rounds=ROUNDS)
    return Speed(
        per_byte=timing.median("store") / (4 * SIDE**2),
        per_operation=timing.median("product") / (2 * SIDE**3),
    )
