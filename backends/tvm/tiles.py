"""The schedule that a layer gets without measurement: the tile that wastes least and reads least.

time  ~  (pixels and channels computed twice)  x  max(1, loads per multiplication)
"""

from collections.abc import Iterator

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, Patch

LARGEST_ROWS = 14
COLUMNS = (4, 2, 1)
LOADS_PER_CYCLE = 2.0  # of registers from the first cache, for one multiplication
NEAR = 128 << 10  # bytes of weights that are still near when a layer begins


def candidates(layer: Convolution, isa: Isa) -> Iterator[Tile]:
    """The space of schedules: all tiles whose sums fit into registers."""
    panels = -(-layer.y.channels // layer.groups // isa.lanes)
    far = panels * layer.groups * isa.lanes * layer.products // outputs(layer) > NEAR
    for columns in COLUMNS:
        for rows in range(1, LARGEST_ROWS + 1):
            if columns <= panels and rows <= layer.y.width and rows * columns <= isa.registers:
                yield Tile(rows=rows, columns=columns, channels_first=True, prefetch=far)


def outputs(layer: Convolution) -> int:
    return layer.y.images * layer.y.height * layer.y.width * layer.y.channels


def cost(layer: Convolution, tile: Tile, isa: Isa) -> float:
    """Time of a layer in units of its least."""
    panels = -(-layer.y.channels // layer.groups // isa.lanes)
    again = covered(layer.y.width, tile.rows) * covered(panels, tile.columns)
    sums = tile.rows * tile.columns
    loads = (tile.rows + tile.columns) / sums / LOADS_PER_CYCLE
    waits = isa.latency / sums  # a register takes its next product only after the last
    return again * max(1.0, waits, 0.75 + loads)


def covered(extent: int, size: int) -> float:
    """How much more than an extent its tiles cover."""
    return -(-extent // size) * size / extent


def tile_for(layer: Convolution, isa: Isa) -> Tile:
    return min(candidates(layer, isa), key=lambda tile: cost(layer, tile, isa))


SMALL = 14  # pixels in a line of a map whose channels are better the outer loop


def patch_for(layer: Depthwise) -> Patch:
    """Neighbours share the pixels that are interleaved for them where the stride is 1, and only there."""
    dense, small = layer.stride == (1, 1), layer.y.width <= SMALL
    size = 2 if dense and layer.y.width > SMALL // 2 else 1
    return Patch(rows=size, columns=size, channels_first=small)
