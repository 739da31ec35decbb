"""Codes of rows of floats on a step that is known: which reader of a value makes them, and on which.

y = f(x), quantize(y)   -->   one function that writes both, or what of them somebody reads
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from qcompiler.backends.tvm.families.base import Places
from qcompiler.backends.tvm.fusions import behind
from qcompiler.backends.tvm.plane import Plane
from qcompiler.ir import arguments

qc = torch.ops.qcompiler


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a function writes of a value; None: not wanted.

    step: scale and zero point of the codes, as constants by name. names: of the floats and the codes.
    """

    floats: Plane | None
    codes: Plane | None
    step: Mapping[str, np.ndarray[Any, Any]]
    names: tuple[str, ...]


def written(places: Places, node: Node) -> Written:
    """Memory for the floats of a value where somebody reads them, and for its codes where that pays."""
    codes = coding(places, node)
    floats = places.float_rows(node) if set(node.users) != {codes} else None
    if codes is None:
        return Written(floats=floats, codes=None, step={}, names=(node.name,))
    plane = places.stores[places.place(codes, codes)].plane
    names = (codes.name,) if floats is None else (node.name, codes.name)
    return Written(floats=floats, codes=plane, step=step_of(places, codes), names=names)


def coding(places: Places, node: Node) -> Node | None:
    """The first reader that makes codes of a value, if it pays to make them while the value is computed."""
    codes = next((user for user in node.users if has_known_step(user)), None)
    pays = codes is not None and places.pays(behind(places, "codes", node, codes))
    return codes if pays else None


def has_known_step(node: Node) -> bool:
    if node.target is not qc.quantize.default:
        return False
    given = arguments(node)
    return given["axis"] is None and given["format"] == "uint8" and given["scale"].op == "get_attr"


def step_of(places: Places, codes: Node) -> dict[str, np.ndarray[Any, Any]]:
    given = arguments(codes)
    return {
        f"{codes.name}.scale": places.tensor(given["scale"]).float().reshape(1).numpy(),
        f"{codes.name}.zero": places.tensor(given["zero_point"]).to(torch.int32).reshape(1).numpy(),
    }
