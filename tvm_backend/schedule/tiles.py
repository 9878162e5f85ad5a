"""Register tiles of the convolution kernels and how they cover an output.

A tile is `th x tw` output pixels times `vectors` vectors of output channels; its accumulators
stay in registers through the whole reduction. A small cost model picks one: cycles of the
inner loop (multiplications, loads, latency of the accumulation chains) summed over all tiles,
remainders included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    @property
    def reordered(self) -> Tile:
        """The same tile, visited in the other order."""
        return replace(self, pixels_first=not self.pixels_first)


@dataclass(frozen=True, slots=True)
class Plan:
    """A tile and what the cost model expects of it.

    Attributes:
        cycles: Of the whole layer.
        tile: The tile.
    """

    cycles: float
    tile: Tile


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
        conversions: Arithmetic instructions to widen a weight vector and an activation after
            their loads, or that cannot start because of it on cores with one pipe for both.
        temporaries: Registers for intermediate products.
        held_steps: Steps whose activations one register holds; 1 if they are loaded when used.
        unpack: Instructions to unpack a weight vector of few bits; None: operands are not bytes.
        streamed: Bytes a cycle of weights from memory that a single pixel reads once.
        finish: Cycles to requantize and store one vector, alone and as one of 2 and of 4.
        registers: Registers of an accumulator, and of a weight vector.
        beside: Cycles that a load costs although it runs beside the multiplications.
        streamed_from: Bytes of weights from which a kernel visits one channel block after the other
            and asks for the next block's weights (`emit/conv_prefetch.py`). None if it never asks:
            multiplications are too slow to wait for memory, or nothing was measured.
        overlapped: Registers an operand takes where a product of every accumulator is in flight and
            operands last for one step; 0 for other idioms.
        widest: Vectors of a tile of several pixels at most.
        rest: Cycles of an extra step (`emit/conv_rest.py`) besides its arithmetic.
    """

    instructions: float = 2
    conversions: tuple[float, float] = (0, 0)
    temporaries: int = 1
    held_steps: int = 1
    unpack: float | None = None
    streamed: float = 20
    finish: tuple[float, float, float] = (4, 4, 4)
    registers: int = 1
    beside: float = 0
    streamed_from: int | None = None
    overlapped: float = 0
    widest: int = 4
    rest: float = 2


_FINISH_256 = (5.0, 3.5, 2.0)
_FINISH_HALF_WIDTH = (5.0, 3.5, 3.0)  # fitted to 48 searched layers on Zen 1
# Bytes a cycle from memory; not measured, but what data sheets and public benchmarks lead to:
_LPDDR4 = 5  # one big core: 10 to 15 GB/s at 2 to 3 GHz
_LPDDR3 = 2  # a small core, as all are without dot products: 2 to 3 GB/s at 1.2 to 1.5 GHz
_CHAIN_INSTRUCTIONS = {4: 1.72, 2: 1.78, 1: 2.1}  # measured, a multiplication counted as 1
_COSTS = {
    **{
        idiom: MacCost(
            _CHAIN_INSTRUCTIONS[idiom.chain], temporaries=2, finish=_FINISH_256, unpack=unpack
        )
        # Measured at 256 bits: most of unpacking starts beside the multiplications. By the count
        # of instructions at 512 bits, where all share two ports.
        for chains, unpack in ((idioms.PMADDUBSW_256, 0.65), (idioms.PMADDUBSW_512, 2.5))
        for idiom in chains
    },
    # Measured (Sapphire Rapids). `beside` is fitted to 60 searched layers: 6 pixels x 4 vectors,
    # which load less than 14 x 2, take 0.82 to 0.98 of their time.
    idioms.VPDPBUSD_512: MacCost(
        instructions=1,
        temporaries=0,
        unpack=2.5,
        finish=(6, 3, 2),
        beside=0.3,
        streamed_from=1 << 16,
    ),
    # As counted: half as many registers, so that tiles load more for a multiplication.
    idioms.VPDPBUSD_256: MacCost(
        instructions=1, temporaries=0, unpack=2.5, finish=_FINISH_256, beside=0.3
    ),
    idioms.PMADDWD_512: MacCost(1.6, conversions=(1, 1)),
    # Measured: widening a weight vector is part of its load and costs nothing.
    idioms.PMADDWD_256: MacCost(1.6, conversions=(0, 1), finish=_FINISH_256),
    # Measured on AVX2; with 512 bits widening has a port of its own less, as derived above.
    idioms.PMADDWD_S16_512: MacCost(1.32, conversions=(1, 0.05)),
    idioms.PMADDWD_S16_256: MacCost(1.32, conversions=(0.3, 0.05), finish=_FINISH_256),
    # As counted: one instruction in place of two that share the same ports.
    idioms.VPDPWSSD_512: MacCost(1, conversions=(1, 0.05), temporaries=0),
    idioms.VPDPWSSD_256: MacCost(1, conversions=(0.3, 0.05), temporaries=0, finish=_FINISH_256),
    # Counted in compiled loops: an activation takes an address and a load, on ARMv8 two weight
    # vectors one load; an extra step takes as many instructions as two others.
    **{
        idiom: MacCost(
            1 + 1 / max(idiom.chain, 1),
            conversions=conversions,
            unpack=2,
            streamed=_LPDDR3,
            overlapped=overlapped,
            widest=widest,
            rest=14,
        )
        for family, conversions, overlapped, widest in (
            ((idioms.SMULL_SADALP, *idioms.SMLAL_SADALP), (0.5, 2), 1, 6),
            ((idioms.VMULL_VPADAL, *idioms.VMLAL_VPADAL), (1, 3), 0.5, 4),
        )
        for idiom in family
    },
    **{
        idiom: MacCost(instructions=1, temporaries=0, held_steps=4, unpack=2, streamed=_LPDDR4)
        for idiom in (idioms.SDOT, idioms.USDOT)
    },
    idioms.SMLAL_S16: MacCost(1, conversions=(1, 0), temporaries=0, held_steps=4, streamed=_LPDDR4),
    idioms.VMLAL_S16: MacCost(1, conversions=(1, 0), temporaries=0, held_steps=4, streamed=_LPDDR3),
    # Counted: pairing two steps of two pixels takes three moves, a row of an accumulator one.
    idioms.USMMLA: MacCost(
        2, conversions=(0, 1.5), temporaries=1, held_steps=2, finish=(4.5, 4.5, 4.5), registers=2
    ),
}
_COSTS |= {mac.modular: cost for mac, cost in _COSTS.items() if mac.activation_bits == 16}
_SINGLE_STEP = _CHAIN_INSTRUCTIONS[1]
LATENCY = 5  # cycles of a multiply-accumulate
PER_CYCLE = 2  # arithmetic instructions, and loads, started in a cycle
TILE_OVERHEAD = 12  # cycles to start a tile
REST_START = 8  # cycles of a tile's loop over extra steps: its length is hard to predict
WEIGHTS_IN_CACHE = 1 << 19  # bytes of weights that are cheap to stream again for each pixel tile
LARGEST_ROW_BLOCK = 8  # vectors of a tile of one pixel: enough to hide the latency
SPREAD_ROWS = 4  # fewer tile rows than these are not worth spreading over threads


def cost_of(mac: MacIdiom, half_width: bool = False) -> MacCost:
    """What the model knows about an idiom, on execution units of whole or half vectors."""
    cost = _COSTS.get(mac, MacCost())
    return replace(cost, finish=_FINISH_HALF_WIDTH) if half_width else cost


def finish_cycles(cost: MacCost, vectors: int) -> float:
    """Cycles to requantize and store some vectors of a pixel."""
    fours, twos, ones = vectors // 4, vectors % 4 // 2, vectors % 2
    return 4 * fours * cost.finish[2] + 2 * twos * cost.finish[1] + ones * cost.finish[0]


def holds_activations(mac: MacIdiom) -> bool:
    """Whether a tile's activations stay in registers while weights pass through."""
    return cost_of(mac).held_steps > 1


def _fits(mac: MacIdiom, pixels: int, vectors: int) -> bool:
    """Accumulators, operands and temporaries fit the registers."""
    cost = cost_of(mac)
    groups = -(-pixels // mac.pixels)
    if cost.overlapped:
        operands = cost.overlapped * (vectors + pixels)
        return 2 * pixels * vectors + operands <= mac.registers
    # Held activations: every pixel has a register, and weights pass through one after the other.
    held = min(max(mac.chain, 1), 3)  # weight vectors of a chain that stay in registers
    operands = groups * mac.pixels if holds_activations(mac) or pixels == 1 else vectors * held
    return (groups * vectors + 1) * cost.registers + operands + cost.temporaries <= mac.registers


def _cycles(
    mac: MacIdiom, cost: MacCost, pixels: int, vectors: int, steps: int, shared: bool, rest: float,
    streamed: bool, bits: int,
) -> float:  # fmt: skip
    """Cycles of one tile.

    Args:
        mac: The idiom.
        cost: What it costs.
        pixels: Output pixels.
        vectors: Vectors of channels.
        steps: Reduction steps.
        shared: All vectors multiply the same activations.
        rest: Share of a vector's steps that need an extra one.
        streamed: Weights come from memory.
        bits: Bits a weight takes there.
    """
    groups = -(-pixels // mac.pixels)
    dots = groups * vectors
    activations = (groups if shared else dots) * mac.pixels / cost.held_steps
    stored = -(-vectors * bits // 8)
    loads = stored * cost.registers + activations
    conversions = vectors * cost.conversions[0] + activations * cost.conversions[1]
    conversions += vectors * (cost.unpack or 0) if bits < 8 else 0
    arithmetic = dots * cost.instructions + conversions
    traffic = 0.0
    if streamed:  # fewer instructions among equal traffic: they never overlap completely
        traffic = stored * mac.lanes * mac.reduction / cost.streamed + arithmetic / 100
    step = max(arithmetic / PER_CYCLE, loads / PER_CYCLE, LATENCY, traffic) + loads * cost.beside
    extra = 1 - (1 - rest) ** vectors  # a step is repeated for all vectors of a block
    alone = dots * _SINGLE_STEP + conversions
    single = max(alone / PER_CYCLE, LATENCY, traffic) + cost.rest
    finish = finish_cycles(cost, vectors)
    overhead = TILE_OVERHEAD + (REST_START if rest else 0)
    return steps * (step + extra * single) + pixels * finish + overhead


def _candidates(mac: MacIdiom, rows: int, cols: int, vectors: int) -> list[tuple[int, int, int]]:
    widest = min(vectors, cost_of(mac).widest if rows * cols > 1 else LARGEST_ROW_BLOCK)
    return [
        (th, tw, nb)
        for th in range(1, min(rows, 4) + 1)
        for tw in range(1, min(cols, mac.registers) + 1)
        for nb in range(1, widest + 1)
        if _fits(mac, th * tw, nb)
    ]


@lru_cache(maxsize=1024)
def plan_tiles(
    mac: MacIdiom, rows: int, cols: int, vectors: int, steps: int, shared: bool = True,
    rest: float = 0.0, bits: int = 8, images: int = 1, half_width: bool = False,
) -> tuple[Plan, ...]:  # fmt: skip
    """All tiles, the cheapest by the cost model first; ties go to fewer rows, then more vectors.

    None if the idiom cannot unpack weights of so few bits.

    Args:
        mac: The idiom.
        rows: Output rows.
        cols: Output columns.
        vectors: Vectors of output channels.
        steps: Reduction steps of one output.
        shared: Whether all vectors multiply the same activations (not so in grouped layers).
        rest: Share of a vector's steps that need an extra one.
        bits: Bits a weight takes in memory.
        images: Images of a batch.
        half_width: See `Target`.
    """
    costs = cost_of(mac, half_width)
    if bits < 8 and costs.unpack is None:
        return ()
    weights = vectors * mac.lanes * mac.reduction * steps
    streamed = rows * cols == 1 and weights > WEIGHTS_IN_CACHE

    def cost(tile: tuple[int, int, int]) -> tuple[float, int, int]:
        th, tw, nb = tile
        total = sum(
            r.count
            * c.count
            * v.count
            * _cycles(mac, costs, r.step * c.step, v.step, steps, shared, rest, streamed, bits)
            for r in split(rows, th)
            for c in split(cols, tw)
            for v in split(vectors, nb)
        )
        return images * total, th, -nb

    ranked = sorted((cost(tile), tile) for tile in _candidates(mac, rows, cols, vectors))
    streamed_from = costs.streamed_from
    small = weights <= (WEIGHTS_IN_CACHE if streamed_from is None else streamed_from)
    return tuple(
        Plan(total, Tile(th, tw, nb, pixels_first=small and rows // th >= SPREAD_ROWS))
        for (total, _, _), (th, tw, nb) in ranked
    )


def depthwise_tiles(
    mac: MacIdiom, cols: int, sizes: Sequence[int], half_width: bool = False
) -> list[Tile]:
    """All tiles of a row, the best first.

    Those are the tiles whose accumulators take about half of the registers, and that finish as many
    vectors together as possible. To finish four pays little on units of half the width; there more
    pixels, which share what they load, fill three quarters (measured on Zen 1, 0.94 of the time).

    Args:
        mac: The idiom.
        cols: Output columns.
        sizes: Vectors of channels that can be finished together, largest first.
        half_width: See `Target`.
    """
    found = []
    filled = mac.registers * 3 // 4 if half_width else mac.registers // 2
    for vectors in sorted(sizes, key=lambda size: size > 2) if half_width else sizes:
        widest = max(1, filled // vectors)
        rule = -(-cols // -(-cols // widest))
        most = max(widest, mac.registers // vectors - 1)
        found += [
            (abs(tw - rule), Tile(1, tw, vectors, pixels_first=True))
            for tw in range(1, min(cols, most) + 1)
        ]
    return [tile for _, tile in sorted(found, key=lambda pair: pair[0])]


def tap_tiles(mac: MacIdiom, kernel: tuple[int, int], cols: int) -> list[Tile]:
    """All tiles of a row for depthwise layers by taps, the best first.

    One vector of channels, so that the weights of all taps stay in registers; pixels until the rows
    of a column and the open sums fill the others (by llvm-mca's Cortex-A53: seven at 3x3, four at
    5x5; two with 16 registers).

    Args:
        mac: The idiom.
        kernel: Rows and columns of the kernel.
        cols: Output columns.
    """
    widest = max(1, (mac.registers - 8) // kernel[0])
    rule = -(-cols // -(-cols // widest))
    tiles = [
        (vectors, abs(tw - rule), tw)
        for vectors in (1, 2)
        for tw in range(1, min(cols, 2 * widest) + 1)
    ]
    return [Tile(1, tw, vectors, pixels_first=True) for vectors, _, tw in sorted(tiles)]
