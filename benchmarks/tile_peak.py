"""The peak of a matrix unit on this machine: two by two tiles on operands in the nearest cache."""

from __future__ import annotations

import numpy as np

from benchmarks.peak import Peak
from fxquant.targets import Target
from tvm_backend.build import host_functions
from tvm_backend.kernel import Abi, Param, outer_loop, prim_func
from tvm_backend.macs import tdpbusd
from tvm_backend.macs.vector import loop
from tvm_backend.tvm_api import tvm

_STEPS, _REPEATS = 4, 128


def tile_peaks(target: Target, threads: int) -> list[Peak]:
    """One loop: every product loads half of its operands; each thread computes its own.

    Args:
        target: A device with tiles.
        threads: How many.
    """
    unit = target.tiles
    assert unit is not None
    row, tile = tdpbusd.ROW_BYTES, unit.rows * tdpbusd.ROW_BYTES
    sums = len(tdpbusd.SUMS)
    params = [
        Param("tiles", (64,), "uint8"),
        Param("x", (2 * tile * _STEPS,), "uint8"),
        Param("w", (2 * tile * _STEPS,), "int8"),
        Param("y", (threads * sums * unit.rows * unit.lanes,), "int32"),
    ]
    with (
        prim_func("tile_peak", params, Abi.PACKED) as (built, p),
        outer_loop(threads, Abi.PACKED) if threads > 1 else loop(1) as thread,
        tdpbusd.configured(p["tiles"]),
    ):
        for t in tdpbusd.SUMS:
            tdpbusd.load(t, p["y"], thread * (sums * unit.rows * unit.lanes), 0)
        with loop(_REPEATS), loop(_STEPS) as step:
            for i in range(2):
                at = (2 * step + i) * tile
                tdpbusd.load(tdpbusd.ACTIVATIONS[i], p["x"], at, row)
                tdpbusd.load(tdpbusd.WEIGHTS[i], p["w"], at, row)
            for t in tdpbusd.SUMS:
                m, v = divmod(t, 2)
                tdpbusd.multiply_accumulate(t, tdpbusd.ACTIVATIONS[m], tdpbusd.WEIGHTS[v])
        for t in tdpbusd.SUMS:
            tdpbusd.store(t, p["y"], (thread * sums + t) * (unit.rows * unit.lanes), row)
    call = host_functions({"tile_peak": built.func}, target)["tile_peak"]
    arguments = [tvm.runtime.tensor(np.ones(p.shape, p.dtype)) for p in params]
    arguments[0] = tvm.runtime.tensor(tdpbusd.configuration(unit.rows, unit.depth))
    macs = threads * _REPEATS * _STEPS * sums * unit.rows * unit.lanes * unit.depth
    return [Peak(2 * unit.rows, 2, macs, lambda: call(*arguments))]
