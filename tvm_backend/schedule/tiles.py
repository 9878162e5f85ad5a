"""Register tiles of the convolution kernels and how they cover an output.

A tile is `th x tw` output pixels times `vectors` vectors of output channels; its accumulators
stay in registers through the whole reduction. A small cost model picks one: cycles of the
inner loop (multiplications, loads, latency of the accumulation chains) summed over all tiles,
remainders included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fxquant.targets import MacIdiom, idioms


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile and the order tiles are visited in.

    Attributes:
        th: Output rows.
        tw: Output columns.
        vectors: Vectors of output channels.
        pixels_first: Outer loop over pixels, inner over channel blocks; else the reverse.
    """

    th: int
    tw: int
    vectors: int
    pixels_first: bool

    def __str__(self) -> str:
        return f"t{self.th}x{self.tw}x{self.vectors}{'p' if self.pixels_first else 'c'}"


@dataclass(frozen=True, slots=True)
class Span:
    """A range covered by equal steps: `first + i * step` for `i < count`."""

    first: int
    count: int
    step: int


def split(extent: int, step: int) -> list[Span]:
    """Cover `0..extent`: whole steps, then one remainder."""
    whole, rest = divmod(extent, step)
    spans = [Span(0, whole, step)] if whole else []
    return [*spans, Span(whole * step, 1, rest)] if rest else spans


@dataclass(frozen=True, slots=True)
class MacCost:
    """What the model needs to know about an idiom.

    Attributes:
        instructions: Arithmetic instructions of one multiply-accumulate.
        conversions: Arithmetic instructions to widen one operand vector after its load.
        temporaries: Registers for intermediate products.
        held_steps: Steps whose activations one register holds; 1 if they are loaded when used.
    """

    instructions: int = 2
    conversions: int = 0
    temporaries: int = 1
    held_steps: int = 1


_COSTS = {
    idioms.VPDPBUSD_512: MacCost(instructions=1, temporaries=0),
    idioms.PMADDWD_512: MacCost(conversions=1),
    idioms.PMADDWD_256: MacCost(conversions=1),
    idioms.SDOT: MacCost(instructions=1, temporaries=0, held_steps=4),
    idioms.USDOT: MacCost(instructions=1, temporaries=0, held_steps=4),
}
LATENCY = 5  # cycles of a multiply-accumulate
PER_CYCLE = 2  # arithmetic instructions, and loads, started in a cycle
TILE_OVERHEAD = 12  # cycles to start a tile
FINISH = 4  # cycles to requantize and store one vector
WEIGHTS_IN_CACHE = 1 << 19  # bytes of weights that are cheap to stream again for each pixel tile
LARGEST_ROW_BLOCK = 8  # vectors of a tile of one pixel: enough to hide the latency
SPREAD_ROWS = 4  # fewer tile rows than these are not worth spreading over threads


def _fits(mac: MacIdiom, pixels: int, vectors: int) -> bool:
    """Accumulators, operands and temporaries fit the registers."""
    cost = _COSTS.get(mac, MacCost())
    # Held activations: every pixel has a register, and weights pass through one after the other.
    operands = pixels if cost.held_steps > 1 or pixels == 1 else vectors
    return pixels * vectors + operands + 1 + cost.temporaries <= mac.registers


def _cycles(mac: MacIdiom, pixels: int, vectors: int, steps: int, shared: bool) -> float:
    """Cycles of one tile.

    Args:
        mac: The idiom.
        pixels: Output pixels.
        vectors: Vectors of channels.
        steps: Reduction steps.
        shared: All vectors multiply the same activations.
    """
    cost = _COSTS.get(mac, MacCost())
    dots = pixels * vectors
    loads = vectors + (pixels if shared else dots) / cost.held_steps
    arithmetic = dots * cost.instructions + loads * cost.conversions
    step = max(arithmetic / PER_CYCLE, loads / PER_CYCLE, LATENCY)
    return steps * step + dots * FINISH + TILE_OVERHEAD


def _candidates(mac: MacIdiom, rows: int, cols: int, vectors: int) -> list[tuple[int, int, int]]:
    widest = min(vectors, 4 if rows * cols > 1 else LARGEST_ROW_BLOCK)
    return [
        (th, tw, nb)
        for th in range(1, min(rows, 4) + 1)
        for tw in range(1, min(cols, mac.registers) + 1)
        for nb in range(1, widest + 1)
        if _fits(mac, th * tw, nb)
    ]


@lru_cache(maxsize=4096)
def choose_tile(
    mac: MacIdiom, rows: int, cols: int, vectors: int, steps: int, shared: bool = True
) -> Tile:
    """The cheapest tile by the cost model; ties go to fewer rows, then more vectors.

    Args:
        mac: The idiom.
        rows: Output rows.
        cols: Output columns.
        vectors: Vectors of output channels.
        steps: Reduction steps of one output.
        shared: Whether all vectors multiply the same activations (not so in grouped layers).
    """

    def cost(tile: tuple[int, int, int]) -> tuple[float, int, int]:
        th, tw, nb = tile
        total = sum(
            r.count * c.count * v.count * _cycles(mac, r.step * c.step, v.step, steps, shared)
            for r in split(rows, th)
            for c in split(cols, tw)
            for v in split(vectors, nb)
        )
        return total, th, -nb

    th, tw, nb = min(_candidates(mac, rows, cols, vectors), key=cost)
    weights = vectors * mac.lanes * mac.reduction * steps
    pixels_first = weights <= WEIGHTS_IN_CACHE and rows // th >= SPREAD_ROWS
    return Tile(th, tw, nb, pixels_first)


def choose_depthwise_tile(mac: MacIdiom, cols: int, vectors: int) -> Tile:
    """Pixels of a row whose accumulators take about half of the registers.

    Args:
        mac: The idiom.
        cols: Output columns.
        vectors: Vectors of channels finished together.
    """
    widest = max(1, mac.registers // (2 * vectors))
    tiles = -(-cols // widest)
    return Tile(1, -(-cols // tiles), vectors, pixels_first=True)
