"""How a convolution on matrix tiles is blocked, and what the cost model expects of it.

Positions are windows at equal distances in the source, so that they can be the rows of a tile:
the pixels of an output row; or of several rows, where what lies between (the halo) is computed,
too, and not used. A block is some positions by some vectors of output channels; its sums pass
through a buffer in the first-level cache to the output stage.

Cycles are those of `tiles.py`, so that both can be compared. Measured on Sapphire Rapids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fxquant.targets import MacIdiom, TileUnit
from tvm_backend.schedule.tiles import SPREAD_ROWS, cost_of, finish_cycles, split

BUFFER_BYTES = 3 << 13  # of the sums of a block
LEAST_POSITIONS = 4  # fewer pixels are bound by their weights: no work for a matrix unit
_MOST_TILES = 4  # tiles of activations in a block
_SUMS = 4  # tiles of sums
_LATENCY = 52  # cycles of a product
_LEAST_PRODUCT, _START = 9, 1.2  # cycles of a product however few rows it has; beyond the rows
_NEAR_BYTES = 24 << 10  # what is read again stays in the first-level cache
_FAR = 40  # bytes a cycle from the second-level cache
_REGION, _BLOCK = 60, 40  # cycles to fill and drain the pipeline, and to start a block
_SMALL_WEIGHTS = 1 << 16  # bytes of weights that are read again for each block of pixels


@dataclass(frozen=True, slots=True)
class AmxLayer:
    """What the model needs to know about a layer.

    Attributes:
        images: Images of a batch.
        rows: Output rows.
        cols: Output columns.
        pitch: Positions from one output row to the next; 0 if that is no whole number.
        vectors: Vectors of output channels.
        taps: Kernel positions.
        steps: Reduction steps of a kernel position; those of `unit.reduction` codes.
        direct: The target's idiom for 8-bit codes; its output stage is used.
        unit: The matrix unit.
    """

    images: int
    rows: int
    cols: int
    pitch: int
    vectors: int
    taps: int
    steps: int
    direct: MacIdiom
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


@dataclass(frozen=True, slots=True)
class AmxPlan:
    """Blocking of a kernel.

    Attributes:
        cycles: Expected for the whole layer.
        rows: Output rows of a block.
        cols: Output columns of a block; all where it has several rows.
        tiles: Tiles of activations in a block.
        size: Rows of a tile.
        vectors: Vectors of output channels of a block.
        tall: Sums of as many tiles of activations as fit are kept, by one vector of channels; else
            of two by two.
        pixels_first: Outer loop over pixels, inner over channel blocks; else the reverse.
    """

    cycles: float
    rows: int
    cols: int
    tiles: int
    size: int
    vectors: int
    tall: bool
    pixels_first: bool

    def __str__(self) -> str:
        shape = "t" if self.tall else "s"
        order = "p" if self.pixels_first else "c"
        return f"b{self.rows}x{self.cols}m{self.tiles}x{self.size}v{self.vectors}{shape}{order}"

    @property
    def reordered(self) -> AmxPlan:
        """The same blocks, visited in the other order."""
        return replace(self, pixels_first=not self.pixels_first)

    @property
    def kept(self) -> tuple[int, int]:
        """Tiles of activations and vectors whose sums are kept at once, at most."""
        if self.tall:
            return min(self.tiles, _SUMS), 1
        tiles = min(self.tiles, 2)
        return tiles, _SUMS // tiles

    def positions(self, pitch: int) -> int:
        """Of a block, from the first pixel to the last one."""
        return (self.rows - 1) * pitch + self.cols

    def starts(self, pitch: int) -> list[int]:
        """First position of each tile; the last ones overlap so that none reaches beyond."""
        last = self.positions(pitch) - self.size
        return [min(i * self.size, last) for i in range(self.tiles)]


def plan_amx(layer: AmxLayer) -> list[AmxPlan]:
    """All blockings, the cheapest first."""
    if layer.rows * layer.cols * layer.images < LEAST_POSITIONS:
        return []
    small = layer.vectors * layer.weight_bytes <= _SMALL_WEIGHTS
    found = []
    for rows, cols in _blocks(layer):
        positions = (rows - 1) * layer.pitch + cols
        tiles = -(-positions // layer.unit.rows)
        size = -(-positions // tiles)
        for vectors in (4, 2, 1):
            if vectors > layer.vectors or _bytes(layer, positions, vectors) > BUFFER_BYTES:
                continue
            pixels_first = small and -(-layer.rows // rows) >= SPREAD_ROWS
            for tall in (False, True):
                plan = AmxPlan(0, rows, cols, tiles, size, vectors, tall, pixels_first)
                found.append((_cycles(layer, plan), plan))
    found.sort(key=lambda pair: pair[0])
    return [replace(plan, cycles=cycles) for cycles, plan in found]


def _bytes(layer: AmxLayer, positions: int, vectors: int) -> int:
    return positions * vectors * layer.unit.lanes * 4


def _blocks(layer: AmxLayer) -> Iterator[tuple[int, int]]:
    """Rows and columns that blocks of a layer may have."""
    most = _MOST_TILES * layer.unit.rows
    widths = {-(-layer.cols // count) for count in range(1, layer.cols + 1)}
    yield from ((1, cols) for cols in sorted(widths) if cols <= most)
    if layer.pitch >= layer.cols:
        heights = {-(-layer.rows // count) for count in range(1, layer.rows + 1)}
        for rows in sorted(heights - {1}):
            if (rows - 1) * layer.pitch + layer.cols <= most:
                yield rows, layer.cols


def _cycles(layer: AmxLayer, plan: AmxPlan) -> float:
    blocks = layer.images * -(-layer.rows // plan.rows) * -(-layer.cols // plan.cols)
    finish = finish_cycles(cost_of(layer.direct), layer.vectors) + layer.vectors
    total = layer.images * layer.rows * layer.cols * finish
    for span in split(layer.vectors, plan.vectors):
        total += blocks * span.count * _block_cycles(layer, plan, span.step)
    return total


def _block_cycles(layer: AmxLayer, plan: AmxPlan, vectors: int) -> float:
    """All products of a block."""
    product = max(min(plan.size + _START, layer.unit.rows), _LEAST_PRODUCT)
    weights = layer.depth // layer.unit.reduction / 2
    if vectors * layer.weight_bytes > _NEAR_BYTES:
        weights = layer.depth * layer.unit.lanes / _FAR
    steps, total = layer.taps * layer.chunks, float(_BLOCK)
    tiles, kept = plan.kept
    for down in split(plan.tiles, tiles):
        for across in split(vectors, kept):
            sums = down.step * across.step
            loads = down.step * plan.size / 2 + across.step * weights
            step = max(sums * product, loads, _LATENCY)
            region = steps * step + sums * 1.5 * plan.size + _REGION
            total += down.count * across.count * region
    return total
