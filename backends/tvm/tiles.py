"""The schedule that a layer gets without measurement: the one that takes fewest cycles on paper.

cycles  =  products, some twice  x  (max(1, waits, loads) + end)  +  weights and pixels brought near again

A tile is `rows` by `columns` registers of sums, and a step one multiplication for each. Its end, where sums
become codes, hides behind the first products of the next one, less so the more sums there are, and weighs
little where there are many steps. How far the choice is from the best: benchmarks/results/schedules.md.
"""

from collections.abc import Iterator

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile
from qcompiler.backends.tvm.kernels.depthwise import Depthwise, Patch

LARGEST_ROWS = 14
COLUMNS = (6, 4, 3, 2, 1)
HELD = 4  # registers beside those of sums
NEAREST, NEAR = 20 << 10, 512 << 10  # bytes of weights that stay in the first and in the second cache
LATE, AGAIN = 0.5, 0.068  # cycles per byte of weights from the third cache unannounced, and from the second
PIXELS = 0.006  # cycles per byte of pixels read once more, for other channels
LARGE, SCATTERED = 512 << 10, 0.02  # bytes of results that leave the second; cycles for each out of order


def space(layer: Convolution, isa: Isa) -> Iterator[Tile]:
    """All tiles whose sums fit into registers, in both orders of the loops, with prefetch and without."""
    panels = -(-layer.y.channels // layer.groups // isa.lanes)
    for columns in COLUMNS:
        for rows in range(1, LARGEST_ROWS + 1):
            if columns <= panels and rows <= layer.y.width and fits(rows, columns, isa):
                for channels_first, prefetch in ((True, True), (True, False), (False, False)):
                    yield Tile(rows=rows, columns=columns, channels_first=channels_first, prefetch=prefetch)


def fits(rows: int, columns: int, isa: Isa) -> bool:
    """Whether sums stay in registers, with the weights and the pixel that they take next."""
    return rows * columns <= isa.registers and rows * columns + columns + 1 <= isa.registers + HELD


def cost(layer: Convolution, tile: Tile, isa: Isa) -> float:
    """Cycles of a layer whose weights are far."""
    y, panels = layer.y, -(-layer.y.channels // layer.groups // isa.lanes)
    down, across, length = layer.runs
    steps, sums = down * across * -(-length // isa.unit), tile.rows * tile.columns
    passes = -(-panels // tile.columns)
    tiles = y.images * layer.groups * y.height * -(-y.width // tile.rows) * passes
    # A word for all lanes is read in half the time of a register.
    loads = (tile.rows / 2 + tile.columns) / sums
    waits = isa.latency / sums  # a register takes its next product only after the last
    end = 0.04 * sums + 0.5 / tile.columns  # codes are stored by row
    products = tiles * sums * steps * (max(1.0, waits, loads) + loads / 10 + end / steps)
    weights = panels * layer.groups * isa.lanes * isa.unit * steps
    if not tile.channels_first:
        again = 0.0 if weights <= NEAREST else AGAIN if weights <= NEAR else LATE
        return products + weights * (LATE + y.images * y.height * again)
    turns = y.height * -(-y.width // tile.rows)  # each announces a line of weights per step
    announced = min(1.0, turns / tile.columns) if tile.prefetch else 0.0
    if turns == 1:  # weights are read straight through: the processor foresees one stream, and only one
        announced = 1 / tile.columns
    scattered = SCATTERED * y.size if passes > 1 and y.size > LARGE else 0.0
    return products + LATE * weights * (1 - announced) + PIXELS * layer.x.size * passes + scattered


# ---------------------------------------------------------------- depthwise

SMALL = 7  # pixels in a line of a map whose channels are better the outer loop
NARROW = 64  # channels that fill a register of bytes; of fewer, several pixels lie in one


def patches(layer: Depthwise, isa: Isa) -> Iterator[Patch]:
    """The space of schedules: neighbours share the pixels that are interleaved for them."""
    for rows, columns in ((2, 2), (4, 1), (2, 1), (1, 2), (1, 1)):
        if rows <= layer.y.height and columns <= layer.y.width:
            for channels_first in (False, True):
                yield Patch(rows=rows, columns=columns, channels_first=channels_first)


def patch_cost(layer: Depthwise, patch: Patch, isa: Isa) -> float:
    """In units of the whole: what differs from the usual patch.

    Two by two where lines have no odd pixel; the rest is what was fastest for MobileNetV2 on Zen 4.
    """
    dense, small = layer.stride == (1, 1), layer.y.width <= SMALL
    alone = layer.y.width % 2 == 1 or (dense and layer.channels < NARROW)
    rows, columns = 4 if dense and alone else 2, 1 if alone else 2
    apart = abs(patch.rows - rows) + abs(patch.columns - columns)
    return 1.0 + apart / 4 + (patch.channels_first != small) / 8
