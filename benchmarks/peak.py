"""The peak of a multiply-accumulate idiom on this machine: register tiles on operands in L1.

The kernels have the instructions of the convolution kernels, made by the same class of
`tvm_backend/macs`, but nothing else: a handful of pixels and weights small enough to stay in the
first-level cache, summed over and over. The best of several register tiles counts. What an
idiom must do to every operand after its load (widen it, for example) is part of its peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxquant.targets import MacIdiom, Target
from tvm_backend.build import host_functions
from tvm_backend.kernel import Abi, Param, outer_loop, prim_func
from tvm_backend.macs import Mac
from tvm_backend.macs.pixels import accumulator_type, load_group, pixel_groups
from tvm_backend.macs.vector import constant, loop, registers, store
from tvm_backend.tvm_api import T, tvm

_TILES = ((2, 2), (4, 2), (5, 2), (6, 2), (2, 4), (3, 4), (4, 4), (6, 4), (8, 3), (1, 8))
_WEIGHT_BYTES = 1 << 14  # half of a small L1 data cache
_MACS = 1 << 23  # of one call on one thread: a fraction of a millisecond


@dataclass(frozen=True, slots=True)
class Peak:
    """One register tile as a callable.

    Attributes:
        pixels: Pixels of the tile.
        vectors: Vectors of channels of the tile.
        macs: Multiply-accumulates of a call.
        run: Does them.
    """

    pixels: int
    vectors: int
    macs: int
    run: Callable[[], object]


def tiles(idiom: MacIdiom) -> list[tuple[int, int]]:
    """(pixels, vectors) whose accumulators and operands fit the registers."""
    return [(p, v) for p, v in _TILES if p % idiom.pixels == 0 and p * v + v + 2 <= idiom.registers]


def peaks(target: Target, mac: Mac, threads: int) -> list[Peak]:
    """All register tiles of an idiom on a target, each thread computing its own."""
    return [_peak(target, mac, pixels, vectors, threads) for pixels, vectors in tiles(mac.idiom)]


def _peak(target: Target, mac: Mac, pixels: int, vectors: int, threads: int) -> Peak:
    idiom, unit = mac.idiom, block(mac)
    per_step = vectors * idiom.lanes * idiom.reduction  # weights
    steps = max(_WEIGHT_BYTES // per_step // unit, 1) * unit
    macs = pixels * steps * per_step
    repeats = max(_MACS // macs, 1)
    name = f"peak_{pixels}x{vectors}"
    params = [
        Param("x", (pixels * steps * idiom.reduction,), idiom.storage),
        Param("w", (steps * per_step,), "int8"),
        Param("y", (threads * pixels * vectors * idiom.lanes,), idiom.accumulator),
    ]
    function = _function(name, mac, (pixels, vectors, steps, repeats, threads), params)
    call = host_functions({name: function}, target)[name]
    arguments = [tvm.runtime.tensor(np.ones(p.shape, p.dtype)) for p in params]
    return Peak(pixels, vectors, threads * repeats * macs, lambda: call(*arguments))


def block(mac: Mac) -> int:
    """Reduction steps emitted together: whole loads of activations, whole int16 chains."""
    return math.lcm(mac.unroll, max(mac.idiom.chain, 1))


def _function(name: str, mac: Mac, extents: tuple[int, ...], params: list[Param]) -> Any:
    pixels, vectors, steps, repeats, threads = extents
    idiom, count = mac.idiom, pixels // mac.idiom.pixels * vectors
    width = idiom.pixels * idiom.lanes
    with (
        prim_func(name, params, Abi.PACKED) as (built, p),
        outer_loop(threads, Abi.PACKED) if threads > 1 else loop(1) as thread,
    ):
        acc = registers(count, accumulator_type(idiom))
        for i in range(count):
            T.buffer_store(acc, constant(0, idiom.accumulator, width), [i])
        with loop(repeats), loop(steps // block(mac)) as i:
            _multiply(mac, (pixels, vectors, steps), p, i * block(mac), acc)
        for i in range(count):
            store(p["y"], (thread * count + i) * width, acc[i], width)
    return built.func


def _multiply(
    mac: Mac, extents: tuple[int, int, int], p: dict[str, Any], first: Any, acc: Any
) -> None:
    """One block of reduction steps of a tile."""
    pixels, vectors, steps = extents
    depth, per_vector = mac.idiom.reduction, mac.idiom.lanes * mac.idiom.reduction
    activations = [
        [
            step
            for start in range(0, block(mac), mac.unroll)
            for step in load_group(
                mac, p["x"], [(m * steps + first + start) * depth for m in group], mac.unroll
            )
        ]
        for group in pixel_groups(range(pixels), mac.idiom)
    ]
    chain = max(mac.idiom.chain, 1)
    for start in range(0, block(mac), chain):
        together = range(start, start + chain)
        weights = [
            [
                T.Bind(mac.load_weights(p["w"], ((first + k) * vectors + v) * per_vector))
                for k in together
            ]
            for v in range(vectors)
        ]
        for m, operands in enumerate(activations):
            shared = [T.Bind(operands[k]) for k in together]
            for v in range(vectors):
                index = m * vectors + v
                value = mac.multiply_accumulate(acc[index], shared, weights[v])
                T.buffer_store(acc, value, [index])
