"""The schedule that a layer gets without measurement: the tile that wastes least and reads least.

time  ~  (pixels and channels computed twice)  x  (max(1, waits, loads) + what its end costs)

All per multiplication. The end of a tile, where sums become codes, hides behind the first products of the
next one, less so the more sums there are; and it weighs little where there are many steps.
"""

from collections.abc import Iterator

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, Patch

LARGEST_ROWS = 14
COLUMNS = (6, 4, 3, 2, 1)
HELD = 4  # registers beside those of sums
NEAR = 128 << 10  # bytes of weights that are still near when a layer begins
NEAREST = 20 << 10  # and those that stay in the first cache beside lines of pixels,
LARGE = (
    512 << 10
)  # which is worth more where results do not stay in the second: they are written in order then


def candidates(layer: Convolution, isa: Isa) -> Iterator[Tile]:
    """The space of schedules: all tiles whose sums fit into registers."""
    panels = -(-layer.y.channels // layer.groups // isa.lanes)
    weights = panels * layer.groups * isa.lanes * layer.products // outputs(layer)
    by_line = weights < NEAREST and layer.y.size > LARGE
    for columns in COLUMNS:
        for rows in range(1, LARGEST_ROWS + 1):
            if columns <= panels and rows <= layer.y.width and fits(rows, columns, isa):
                yield Tile(rows=rows, columns=columns, channels_first=not by_line, prefetch=weights > NEAR)


def fits(rows: int, columns: int, isa: Isa) -> bool:
    """Whether sums stay in registers, with the weights and the pixel that they take next."""
    return rows * columns <= isa.registers and rows * columns + columns + 1 <= isa.registers + HELD


def outputs(layer: Convolution) -> int:
    return layer.y.images * layer.y.height * layer.y.width * layer.y.channels


def cost(layer: Convolution, tile: Tile, isa: Isa) -> float:
    """Time of a layer in units of its least. The weights of its terms were fitted to 20 layers on Zen 4."""
    panels = -(-layer.y.channels // layer.groups // isa.lanes)
    again = covered(layer.y.width, tile.rows) * covered(panels, tile.columns)
    sums = tile.rows * tile.columns
    loads = (
        tile.rows / 2 + tile.columns
    ) / sums  # a word for all lanes is read in half the time of a register
    waits = isa.latency / sums  # a register takes its next product only after the last
    down, across, length = layer.runs
    steps = down * across * -(-length // isa.unit)
    end = 0.04 * sums + 0.5 / tile.columns  # codes are stored by row
    return again * (max(1.0, waits, loads) + loads / 10 + end / steps)


def covered(extent: int, size: int) -> float:
    """How much more than an extent its tiles cover."""
    return -(-extent // size) * size / extent


def tile_for(layer: Convolution, isa: Isa) -> Tile:
    return min(candidates(layer, isa), key=lambda tile: cost(layer, tile, isa))


SMALL = 7  # pixels in a line of a map whose channels are better the outer loop
NARROW = 64  # channels that fill a register of bytes; of fewer, several pixels lie in one


def patches(layer: Depthwise) -> Iterator[Patch]:
    """The space of schedules: neighbours share the pixels that are interleaved for them."""
    for rows, columns in ((2, 2), (4, 1), (2, 1), (1, 2), (1, 1)):
        if rows <= layer.y.height and columns <= layer.y.width:
            for channels_first in (False, True):
                yield Patch(rows=rows, columns=columns, channels_first=channels_first)


def patch_for(layer: Depthwise) -> Patch:
    """Two by two where lines have no odd pixel; the rest is what was fastest for MobileNetV2 on Zen 4."""
    dense, small = layer.stride == (1, 1), layer.y.width <= SMALL
    alone = layer.y.width % 2 == 1 or (dense and layer.channels < NARROW)
    rows = 4 if dense and alone else 2
    return Patch(rows=rows, columns=1 if alone else 2, channels_first=small)
