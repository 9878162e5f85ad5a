"""How a Winograd kernel is blocked, and what the cost model expects of it.

Cycles are those of `tiles.py`, so that both can be compared. Measured with AVX2 on ResNet-18's 3x3
layers (the constants say which figure comes from there); instructions of the transforms are counted
in code compiled for it. Other targets differ by the length of their vectors and the instructions of
a product; of these only the generic one was measured to be right about the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxquant.targets import MacIdiom, idioms
from tvm_backend.layout import Image
from tvm_backend.schedule.tiles import (
    PER_CYCLE,
    TILE_OVERHEAD,
    cost_of,
    finish_cycles,
    holds_activations,
    split,
)
from tvm_backend.winograd import Winograd

BLOCK_VECTORS = 4  # vectors of output channels done together: a chunk of the output stage
# Of a block: with the weights in use it stays in a cache of 512 KiB, or of 1 MiB, as all processors
# with vectors of 512 bits have it.
WORKSPACE_BYTES = 3 << 17
_WIDE_WORKSPACE_BYTES = 5 << 17
SPREAD_BLOCKS = 4  # fewer blocks of tiles than these are not worth spreading over threads
# Measured, of a layer inside a network: bytes a cycle of weights read for the first time, from the
# last cache and, where they are larger than it keeps, from memory; and read again for each block.
CACHED_BYTES = 6 << 20
COLD_BYTES, MEMORY_BYTES, WARM_BYTES = 8, 3.5, 20
# Beside one multiplier of half the width, which needs three times as many cycles, memory delivers
# meanwhile: 512 channels at 7x7 take 7.2 M cycles, 4.9 M of them for products (measured on Zen 1).
_HALF_WIDTH_SPEED = 6
# Instructions of a product and its sum, by the target's idiom, where `tiles.py` has other ones:
# pmaddwd and paddd on 256 bits, measured (other ports add); on 512 bits, where both share two
# ports; plain products.
_PRODUCT_INSTRUCTIONS = {idioms.PMADDWD_256: 1.38, idioms.PMADDWD_512: 2.0, idioms.WIDEN: 1.2}
# By how much a kernel must promise to be faster: nothing where that was measured, some where
# instructions of whole networks (NEON) or cycles of all loops (VNNI) were counted, more where
# neither was done.
_COUNTED = (idioms.SMULL_SADALP, idioms.VPDPBUSD_512, idioms.VPDPBUSD_256)
_MARGINS = {idioms.PMADDWD_256: 1.0, idioms.WIDEN: 1.0, **dict.fromkeys(_COUNTED, 1.1)}
_MARGIN = 1.25
_ACCUMULATE = 4  # instructions of a pixel and vector: load, inverse, shift, bias
# Instructions of the transforms of one vector with loads and stores, counted in AVX2 code: those of
# inputs by the size of a tile, those of sums by its outputs along an axis.
_INPUT_INSTRUCTIONS = {4: 71, 6: 366}
_OUTPUT_INSTRUCTIONS = {2: 44, 3: 164, 4: 213}
_GROUPS = range(1, 9)
_MORE_BLOCKS = 12  # blocks tried beyond the fewest that fit
_FOR_BALANCE = 1.02  # what one thread may lose for two to have equal shares


@dataclass(frozen=True, slots=True)
class WinogradPlan:
    """Blocking of a Winograd kernel.

    Attributes:
        cycles: Expected for the whole layer.
        size: Size of the tiles.
        tiles: Tiles in a block.
        group: Tiles of a register tile of the matrix products.
        vectors: Vectors of output channels of a register tile.
        transform_lanes: Largest vector of the input transform.
        spread_tiles: Threads share the blocks of tiles; else the channels of a block.
    """

    cycles: float
    size: Winograd
    tiles: int
    group: int
    vectors: int
    transform_lanes: int
    spread_tiles: bool

    def __str__(self) -> str:
        spread = "t" if self.spread_tiles else "c"
        return f"f{self.size.m}b{self.tiles}g{self.group}x{self.vectors}{spread}"


@dataclass(frozen=True, slots=True)
class WinogradLayer:
    """What the model needs to know about a layer.

    Attributes:
        output: Output.
        depth: Channels of the input.
        channels: Stored channels of the transformed input.
        input_lanes: Channels that are transformed at once.
        direct: The target's idiom for 8-bit codes; its output stage is used.
        mac: The idiom of the matrix products.
        transform_lanes: int16 lanes of a register.
        half_width: See `Target`.
    """

    output: Image
    depth: int
    channels: int
    input_lanes: int
    direct: MacIdiom
    mac: MacIdiom
    transform_lanes: int
    half_width: bool = False

    @property
    def vectors(self) -> int:
        """Vectors of output channels."""
        return -(-self.output.c // self.mac.lanes)

    @property
    def steps(self) -> int:
        """Reduction steps of one product."""
        return -(-self.depth // self.mac.reduction)

    def tiles(self, size: Winograd) -> int:
        """Tiles of all images."""
        rows, cols = (-(-extent // size.m) for extent in (self.output.h, self.output.w))
        return self.output.n * rows * cols

    def workspace_bytes(self, size: Winograd, tiles: int) -> int:
        """Transformed inputs and sums of a block of tiles."""
        channels = min(self.vectors, BLOCK_VECTORS) * self.mac.lanes
        return size.size**2 * tiles * (2 * self.channels + 4 * channels)

    def weight_bytes(self, size: Winograd) -> int:
        """Transformed weights."""
        idiom = self.mac
        return 2 * size.size**2 * self.vectors * idiom.lanes * self.steps * idiom.reduction


def plan_winograd(layer: WinogradLayer, size: Winograd) -> WinogradPlan:
    """The cheapest blocking for one size of tiles; among equals the one that two threads share."""
    total = layer.tiles(size)
    fits = _WIDE_WORKSPACE_BYTES if layer.transform_lanes == 32 else WORKSPACE_BYTES
    largest = max(fits // layer.workspace_bytes(size, 1), 1)
    fewest = -(-total // largest)
    blocks = range(fewest, min(fewest + _MORE_BLOCKS, total) + 1)
    plans = [_plan(layer, size, tiles) for tiles in sorted({-(-total // n) for n in blocks})]
    limit = _FOR_BALANCE * min(plan.cycles for plan in plans)

    def of_two_threads(plan: WinogradPlan) -> float:
        shared = (
            -(-total // plan.tiles) if plan.spread_tiles else -(-layer.vectors // BLOCK_VECTORS)
        )
        return plan.cycles * -(-shared // 2) * 2 / shared

    return min((plan for plan in plans if plan.cycles <= limit), key=of_two_threads)


def _plan(layer: WinogradLayer, size: Winograd, tiles: int) -> WinogradPlan:
    blocks = -(-layer.tiles(size) // tiles)
    product, group, vectors = min(
        (_block_cycles(layer, tiles, group, vectors), group, vectors)
        for group in _GROUPS
        for vectors in (1, 2, 3, 4)
        if group <= tiles and vectors <= layer.vectors and _fits(layer.mac, group, vectors)
    )
    cost = cost_of(layer.direct, layer.half_width)
    finish = finish_cycles(cost, min(layer.vectors, BLOCK_VECTORS))
    finish = finish / min(layer.vectors, BLOCK_VECTORS) + _ACCUMULATE / PER_CYCLE
    registers = -(-layer.input_lanes // layer.transform_lanes)  # of what is transformed at once
    inputs = layer.channels // layer.input_lanes * registers * _INPUT_INSTRUCTIONS[size.size]
    outputs = layer.vectors * (_OUTPUT_INSTRUCTIONS[size.m] / PER_CYCLE + size.m**2 * finish)
    bytes_once = layer.weight_bytes(size)
    first = bytes_once / (COLD_BYTES if bytes_once <= CACHED_BYTES else MEMORY_BYTES)
    traffic = first + (blocks - 1) * bytes_once / WARM_BYTES
    traffic /= _HALF_WIDTH_SPEED if layer.half_width else 1
    cycles = blocks * (size.size**2 * product + tiles * (inputs / PER_CYCLE + outputs)) + traffic
    cycles *= _MARGINS.get(layer.direct, _MARGIN)
    return WinogradPlan(
        cycles, size, tiles, group, vectors, layer.transform_lanes, blocks >= SPREAD_BLOCKS
    )


def _fits(mac: MacIdiom, group: int, vectors: int) -> bool:
    """Accumulators, weights, activations and a product fit the registers."""
    activations = group if holds_activations(mac) else 1
    return group * vectors + vectors + activations + 1 <= mac.registers


def _block_cycles(layer: WinogradLayer, tiles: int, group: int, vectors: int) -> float:
    """Cycles of one matrix product of a block of tiles."""
    cost, beside, total = cost_of(layer.mac), cost_of(layer.direct).beside, 0.0
    instructions = _PRODUCT_INSTRUCTIONS.get(layer.direct, cost.instructions)
    for rows in split(tiles, group):
        for block in split(layer.vectors, BLOCK_VECTORS):
            for part in split(block.step, vectors):
                dots = rows.step * part.step
                loads = rows.step / cost.held_steps + part.step
                step = max(dots * instructions, loads) / PER_CYCLE + loads * beside
                count = rows.count * block.count * part.count
                total += count * (layer.steps * step + TILE_OVERHEAD)
    return total
