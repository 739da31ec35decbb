"""Elements in groups that are hard to store in few bits."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.numerics.groupwise import GROUP

INF, NAN = float("inf"), float("nan")


def hard(dtype: torch.dtype) -> Tensor:
    """Groups at the ends of a type, constant ones, zeros of both signs, NaN and infinities; a part of one."""
    info, generator = torch.finfo(dtype), torch.Generator().manual_seed(0)
    tiny, most = info.smallest_normal, info.max
    patterns = [
        [0.0], [-0.0], [0.0, -0.0], [-0.0, 0.0], [1.0], [0.1], [-0.1], [NAN, 1.0], [-NAN, 1.0],
        [INF, 1.0, 2.0], [-INF, 1.0, -2.0], [INF], [-INF], [INF, -INF], [NAN, INF], [most, -most],
        [most, 1.0, 3.0], [-most], [most], [tiny, -tiny], [tiny / 32, 0.0], [-tiny / 64],
        [tiny / 4, -tiny / 3, 0.0], [most / 2, -most / 2, 0.0],
        [1.7e38, -1.7e38],  # the largest code times the scale is beyond float32
    ]  # fmt: skip
    groups = [torch.tensor((pattern * GROUP)[:GROUP]) for pattern in patterns]
    for scale in (1e-44, 1e-40, 1e-38, 1e-6, 1.0, 1e4, 1e30, 1e38):
        normal = torch.randn(8, GROUP, generator=generator)
        groups += [*(normal * scale), *(normal[:4].abs() * scale), *(scale * (5 + normal[:4] / 100))]
    return torch.cat([*groups, groups[-1][:77]]).to(dtype)
