"""The schedule that a layer gets without measurement: the one that takes fewest cycles on paper.

cycles  =  products, some twice  x  (max(1, waits, loads) + end)  +  weights and pixels brought near again

A tile is `rows` by `columns` registers of sums, and a step one multiplication for each. Its end, where sums
become codes, hides behind the first products of the next one, less so the more sums there are, and weighs
little where there are many steps. How far the choice is from the best: benchmarks/results/schedules.md.
"""

from collections.abc import Iterator

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile
from qcompiler.backends.tvm.kernels.depthwise import PART, TALL, Depthwise, Patch, feeds
from qcompiler.backends.tvm.kernels.strips import strips

LARGEST_ROWS = 14
COLUMNS = (6, 4, 3, 2, 1)
HELD = 4  # registers beside those of sums
NEAR = 512 << 10  # bytes of weights that stay in the second cache
LATE, AGAIN = 0.5, 0.068  # cycles per byte of weights from the third cache unannounced, and from the second
PIXELS = 0.006  # cycles per byte of pixels read once more, for other channels


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
    if tile.channels_first:
        turns = y.height * -(-y.width // tile.rows)  # each announces a line of weights per step
        announced = min(1.0, turns / tile.columns) if tile.prefetch else 0.0
        return products + LATE * weights * (1 - announced) + PIXELS * layer.x.size * passes
    return products + weights * (LATE + y.images * y.height * (AGAIN if weights <= NEAR else LATE))


# ---------------------------------------------------------------- depthwise

MIX, AGAIN_IN_LINE = 21.4, 47.0  # cycles to interleave four pixels; for every further four of a line, more
DOT, PATCH, PATCH_STORE = 2.1, 2.2, 5.6  # a multiplication with its weights; a patch; a result of it
CROWDED, SPILL = 5, 6.6  # registers of sums beside those of pixels and weights, and what each more costs
FIRST, LAST = 0.0086, 0.014  # cycles per byte of pixels, or of weights per line, that are brought near again


def patches(layer: Depthwise, isa: Isa) -> Iterator[Patch]:
    """The patches whose sums fit into registers, with channels as the outer and as the inner loop."""
    for rows in range(1, 5):
        for columns in range(1, 5):
            if rows * columns * 4 <= isa.registers and rows <= layer.y.height and columns <= layer.y.width:
                for channels_first in (False, True):
                    yield Patch(rows=rows, columns=columns, channels_first=channels_first)


def patch_cost(layer: Depthwise, patch: Patch, isa: Isa) -> float:
    """Cycles of a layer: every line of pixels that a patch sees is interleaved once for all of it."""
    (height, _), y, fed = layer.kernel, layer.y, feeds(layer, patch.columns)
    rows = patch.rows if height <= TALL else 1
    results = rows * patch.columns
    seen = {r * layer.stride[0] + kh * layer.dilation[0] for r in range(rows) for kh in range(height)}
    products = 4 * rows * height * sum(len(feed.uses) for feed in fed)
    mixing = len(seen) * (MIX * len(fed) + AGAIN_IN_LINE * (len(fed) - 1))
    one = PATCH + DOT * products + PATCH_STORE * results + SPILL * max(0, 4 * results - CROWDED) + mixing
    count = 0
    for strip in strips(layer.channels, isa.bytes, PART):
        beside = isa.bytes // strip.width  # pixels in a register
        count += strip.turns * -(-y.height // rows) * -(-y.width // (patch.columns * beside))
    taps = layer.channels * height * layer.kernel[1]
    again = FIRST * layer.x.size if patch.channels_first else LAST * taps * y.height * y.images
    return count * y.images * one + again
