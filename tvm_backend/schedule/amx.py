"""How a convolution on matrix tiles is blocked, and what the cost model expects of it.

The rows of a tile are windows at equal distances in the source: pixels of an output row; or of
several rows, joined to one run, where what lies between them (the halo) is computed, too, and not
used. A block is some rows of pixels by some vectors of output channels; its sums pass through a
buffer in the first-level cache to the output stage.

Cycles are those of `tiles.py`, so that both can be compared. Measured on Sapphire Rapids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from fxquant.targets import TileUnit
from tvm_backend.schedule.tiles import SPREAD_ROWS, split

_BUFFER_BYTES = 3 << 13  # of the sums of a block
_LEAST_PIXELS = 4  # fewer pixels are bound by their weights: no work for a matrix unit
SMALL_WEIGHTS = 1 << 16  # bytes of weights that are read again for each block of pixels
_MOST_TILES = 4  # tiles of activations in a block
_SUMS = 4  # tiles of sums
# Fitted to 1,500 measurements of 27 layers of ResNet-50 (Sapphire Rapids, cold weights).
_LEAST_PRODUCT, _START = 11, 1.8  # cycles of a product however few rows it has; beyond the rows
_NEAR_BYTES = 48 << 10  # what is read again stays in the first-level cache
_FAR = 72  # bytes a cycle from the second-level cache
_STORE = 2.7  # cycles to start and store a row of sums
_FINISH = {1: 8.8, 2: 5.9, 4: 5.7}  # cycles to requantize a vector, by vectors of a block
_BLOCK = 100  # cycles to start a block
_OVERLAPPED, _POWER = 106, 0.6  # vectors of a block below which its output hides behind products


@dataclass(frozen=True, slots=True)
class AmxLayer:
    """What the model needs to know about a layer.

    Attributes:
        images: Images of a batch.
        rows: Output rows.
        cols: Output columns.
        pitch: Windows from one output row to the next; 0 if that is no whole number.
        row_bytes: Of the source that an output row reads, for one row of the kernel.
        vectors: Vectors of output channels.
        taps: Kernel positions.
        steps: Reduction steps of a kernel position; those of `unit.reduction` codes.
        unit: The matrix unit.
    """

    images: int
    rows: int
    cols: int
    pitch: int
    row_bytes: int
    vectors: int
    taps: int
    steps: int
    unit: TileUnit

    @property
    def chunks(self) -> int:
        """Products of a kernel position: equal parts of its steps."""
        most = self.unit.depth // self.unit.reduction
        return next(n for n in range(-(-self.steps // most), self.steps + 1) if self.steps % n == 0)

    @property
    def depth(self) -> int:
        """Codes of a chunk."""
        return self.steps // self.chunks * self.unit.reduction

    @property
    def weight_bytes(self) -> int:
        """Of a vector of output channels."""
        return self.taps * self.steps * self.unit.reduction * self.unit.lanes

    def blocks(self, plan: AmxPlan) -> tuple[int, int]:
        """Blocks of an image, down and across."""
        return -(-self.rows // plan.rows), -(-self.cols // plan.cols)


@dataclass(frozen=True, slots=True)
class AmxPlan:
    """Blocking of a kernel.

    Attributes:
        cycles: Expected for the whole layer.
        rows: Output rows of a block.
        cols: Output columns of a block; all where it has several rows.
        pitch: Windows from one of its rows to the next where they are one run; 0 if every row is
            a run of its own.
        tiles: Tiles of activations in a run.
        size: Rows of a tile.
        vectors: Vectors of output channels of a block.
        tall: Sums of as many tiles of activations as fit are kept, by one vector of channels; else
            of two by two.
        pixels_first: Outer loop over pixels, inner over channel blocks; else the reverse.
    """

    cycles: float
    rows: int
    cols: int
    pitch: int
    tiles: int
    size: int
    vectors: int
    tall: bool
    pixels_first: bool

    def __str__(self) -> str:
        run, shape = "j" if self.pitch else "x", "t" if self.tall else "s"
        order = "p" if self.pixels_first else "c"
        tiles = f"m{self.tiles}x{self.size}v{self.vectors}"
        return f"b{self.rows}{run}{self.cols}{tiles}{shape}{order}"

    @property
    def runs(self) -> int:
        """Runs of windows in a block."""
        return 1 if self.pitch else self.rows

    @property
    def kept(self) -> tuple[int, int]:
        """Tiles of activations and vectors whose sums are kept at once, at most."""
        tiles = self.runs * self.tiles
        if self.tall:
            return min(tiles, _SUMS), 1
        return min(tiles, 2), _SUMS // min(tiles, 2)

    @property
    def line(self) -> int:
        """Windows from one row of a block to the next, as their sums are stored."""
        return self.pitch or self.cols

    @property
    def windows(self) -> int:
        """Windows of a run, from the first pixel to the last one."""
        return _run(self.rows, self.cols, self.pitch)

    @property
    def stored(self) -> int:
        """Windows whose sums are stored."""
        return self.runs * self.windows

    @property
    def places(self) -> list[tuple[int, int]]:
        """Run and first window of each tile; the last ones overlap so that none reaches beyond."""
        last = self.windows - self.size
        starts = [min(i * self.size, last) for i in range(self.tiles)]
        return [(run, start) for run in range(self.runs) for start in starts]


def plan_amx(layer: AmxLayer) -> list[AmxPlan]:
    """All blockings, the cheapest first."""
    if layer.rows * layer.cols * layer.images < _LEAST_PIXELS:
        return []
    small = layer.vectors * layer.weight_bytes <= SMALL_WEIGHTS
    found = []
    for rows, cols, pitch in _shapes(layer):
        windows = _run(rows, cols, pitch)
        tiles = -(-windows // layer.unit.rows)
        size = -(-windows // tiles)
        pixels_first = small and -(-layer.rows // rows) >= SPREAD_ROWS
        for vectors, tall in product((4, 2, 1), (False, True)):
            plan = AmxPlan(0, rows, cols, pitch, tiles, size, vectors, tall, pixels_first)
            if vectors <= layer.vectors and _buffer_bytes(layer, plan) <= _BUFFER_BYTES:
                found.append(replace(plan, cycles=_cycles(layer, plan)))
    return sorted(found, key=lambda plan: plan.cycles)


def _buffer_bytes(layer: AmxLayer, plan: AmxPlan) -> int:
    return plan.stored * plan.vectors * layer.unit.lanes * 4


def _run(rows: int, cols: int, pitch: int) -> int:
    """Windows of a run; one with a pitch has all rows."""
    return (rows - 1) * pitch + cols if pitch else cols


def _shapes(layer: AmxLayer) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and pitch that blocks of a layer may have."""
    most = _MOST_TILES * layer.unit.rows
    widths = {-(-layer.cols // count) for count in range(1, layer.cols + 1)}
    yield from ((1, cols, 0) for cols in sorted(widths) if cols <= most)
    heights = {-(-layer.rows // count) for count in range(1, layer.rows + 1)} - {1}
    for rows in sorted(heights):
        if layer.pitch >= layer.cols and _run(rows, layer.cols, layer.pitch) <= most:
            yield rows, layer.cols, layer.pitch
        if rows * -(-layer.cols // layer.unit.rows) <= 2 * _MOST_TILES:  # a row has its own
            yield rows, layer.cols, 0


def _cycles(layer: AmxLayer, plan: AmxPlan) -> float:
    blocks = layer.images * prod(layer.blocks(plan))
    spans = split(layer.vectors, plan.vectors)
    return blocks * sum(span.count * _block_cycles(layer, plan, span.step) for span in spans)


def _block_cycles(layer: AmxLayer, plan: AmxPlan, vectors: int) -> float:
    """Products and output of a block; the processor looks ahead and overlaps small ones."""
    finished = plan.rows * plan.cols * vectors
    products = _product_cycles(layer, plan, vectors)
    output = finished * _FINISH.get(vectors, _FINISH[1])
    exposed = min(1, (finished / _OVERLAPPED) ** _POWER)
    return max(products, output) + exposed * min(products, output) + _BLOCK


def _product_cycles(layer: AmxLayer, plan: AmxPlan, vectors: int) -> float:
    cycles = max(min(plan.size + _START, layer.unit.rows), _LEAST_PRODUCT)
    near = vectors * layer.weight_bytes <= _NEAR_BYTES
    weights = layer.depth / 8 if near else layer.depth * layer.unit.lanes / _FAR
    read = plan.rows * plan.cols / layer.cols * layer.row_bytes
    pixels = plan.size / 2 if read <= _NEAR_BYTES else plan.size * layer.depth / _FAR
    tiles, kept = plan.kept
    total = 0.0
    for down in split(plan.runs * plan.tiles, tiles):
        for across in split(vectors, kept):
            sums = down.step * across.step
            step = max(sums * cycles, down.step * pixels + across.step * weights)
            region = layer.taps * layer.chunks * step + sums * _STORE * plan.size
            total += down.count * across.count * region
    return total
