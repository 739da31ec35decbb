"""Codes of rows of floats on a step that is known: which reader of a value makes them, and on which."""

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from qcompiler.backends.tvm.families.base import Places
from qcompiler.backends.tvm.fusions import behind
from qcompiler.ir import arguments

qc = torch.ops.qcompiler


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
