"""The schedule that a layer gets without measurement: the one that takes fewest cycles on paper.

cycles  =  tiles (steps max(sums, latency, loads) + finish)  +  weights and pixels brought near again

A tile is `rows` by `columns` registers of sums, and a step one multiplication for each. The constants were
fitted to the times of 1200 schedules for the layers of ResNet-50 and MobileNetV2 on Zen 4; how far the choice
is from the best: benchmarks/results/schedules.md.
"""

from collections.abc import Iterator

from qcompiler.backends.tvm.isa import Isa
from qcompiler.backends.tvm.kernels.conv import Convolution, Tile
from qcompiler.backends.tvm.kernels.depthwise import PART, TALL, Depthwise, Patch, feeds
from qcompiler.backends.tvm.kernels.strips import strips

LARGEST_ROWS = 14
COLUMNS = (4, 2, 1)
LOAD = 2  # cycles for a register of weights from the second cache
TILE, STORE = 16.0, 7.0  # cycles to begin and end a tile, and to finish a register of it
HIDDEN, EXPOSED = 12, 56.0  # of more registers than the first the finish does not overlap with the next tile
STEP, AHEAD = 0.15, 0.8  # a turn of the inner loop; a prefetch in it
NEAR = 512 << 10  # bytes of weights that stay in the second cache
LATE, AGAIN = 0.5, 0.068  # cycles per byte of weights from the third cache unannounced, and from the second
PIXELS = 0.006  # cycles per byte of pixels read once more, for other channels


def space(layer: Convolution, isa: Isa) -> Iterator[Tile]:
    """All tiles whose sums fit into registers, in both orders of the loops, with prefetch and without."""
    panels = -(-layer.y.channels // layer.groups // isa.lanes)
    for columns in COLUMNS:
        for rows in range(1, LARGEST_ROWS + 1):
            if columns <= panels and rows <= layer.y.width and rows * columns <= isa.registers:
                for channels_first, prefetch in ((True, True), (True, False), (False, False)):
                    yield Tile(rows=rows, columns=columns, channels_first=channels_first, prefetch=prefetch)


def cost(layer: Convolution, tile: Tile, isa: Isa) -> float:
    """Cycles of a layer whose weights are far."""
    y, panels = layer.y, -(-layer.y.channels // layer.groups // isa.lanes)
    down, across, length = layer.runs
    steps, sums = down * across * -(-length // isa.unit), tile.rows * tile.columns
    passes = -(-panels // tile.columns)
    tiles = y.images * layer.groups * y.height * -(-y.width // tile.rows) * passes
    step = max(sums, isa.latency, LOAD * tile.columns) + STEP + AHEAD * tile.prefetch
    finish = STORE * sums * (1.0 if layer.residual is None else 1.5) + EXPOSED * max(0, sums - HIDDEN)
    weights = panels * layer.groups * isa.lanes * isa.unit * steps
    if tile.channels_first:
        turns = y.height * -(-y.width // tile.rows)  # each announces a line of weights per step
        announced = min(1.0, turns / tile.columns) if tile.prefetch else 0.0
        if turns == 1:  # weights are read straight through: the processor foresees one stream, and only one
            announced = 1 / tile.columns
        memory = LATE * weights * (1 - announced) + PIXELS * layer.x.size * passes
    else:
        memory = weights * (LATE + y.images * y.height * (AGAIN if weights <= NEAR else LATE))
    return tiles * (steps * step + finish + TILE) + memory


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
