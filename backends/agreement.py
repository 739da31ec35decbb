"""What a kernel must show before it stands in for a reference: the same numbers, to the last bit."""

from collections.abc import Iterable

import torch
from torch import Tensor

from qcompiler.errors import EngineError


def agree(pairs: Iterable[tuple[str, Tensor, Tensor]], *, node: str, fix: str) -> None:
    """EngineError at the first of (what, found, wanted) whose values differ."""
    for what, found, wanted in pairs:
        if not torch.equal(found, wanted):
            raise EngineError(
                f"the {what} are not those of the reference", node=node,
                why=f"{found[:4].tolist()} .. were computed for {wanted[:4].tolist()} ..", fix=fix,
            )  # fmt: skip
