"""Rotary positions of rows of floats, and the codes that the first reader makes of them.

rotary(x, cos, sin), quantize(rotary(..))   -->   one function that writes both
"""

from torch.fx import Node

from qcompiler.backends.tvm.coding import written
from qcompiler.backends.tvm.families.base import Layer, Places
from qcompiler.backends.tvm.gates import columns_of
from qcompiler.backends.tvm.kernels.rotary import Rotary, rotary
from qcompiler.ir import arguments


def turned(places: Places, node: Node) -> Layer | None:
    """Of heads side by side, [B, T, H D]; the tables [T, D / 2] are constants, or floats by row as well."""
    given, shape = arguments(node), places.shapes[node]
    (source, first), tables = columns_of(given["x"]), (given["cos"], given["sin"])
    constant = all(table.op == "get_attr" for table in tables)
    by_token = len(shape) == 3 and node not in places.images
    if not by_token or not all(places.known(value, before=node) for value in (source, *tables)):
        return None
    x, width = places.rows(source), shape[2] // given["heads"]
    known = {
        f"{table.target}.rows": places.tensor(table).float().contiguous().numpy()
        for table in tables
        if constant
    }
    angles = [f"{table.target}.rows" if constant else places.rows(table) for table in tables]
    to = written(places, node)
    layer = Rotary(
        x=places.stores[x].plane, first=first, heads=given["heads"], width=width, positions=shape[1],
        pitch=width // 2 if constant else places.stores[angles[0]].plane.pitch,
        floats=to.floats, codes=to.codes,
    )  # fmt: skip
    return Layer(
        kernel="rotary", description=layer, make=lambda name: rotary(layer, places.isa, name),
        arguments=(x, *angles, *to.step), results=to.names, constants={**known, **to.step},
    )  # fmt: skip
