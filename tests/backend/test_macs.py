"""Every MAC implementation equals its description on adversarial operands."""

from __future__ import annotations

import numpy as np
import pytest

from fxquant.errors import TargetError
from fxquant.targets import (
    ARMV7_NEON,
    CORTEX_A53,
    CORTEX_A76,
    GENERIC,
    NEOVERSE_V1,
    X86_AMX,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_VNNI,
    MacIdiom,
    Target,
    idioms,
)
from tests.backend.kernel_harness import run_kernel
from tvm_backend.kernel import Abi, Kernel, Param, prim_func
from tvm_backend.layout import Flat
from tvm_backend.macs import MACS, Mac, mac_of, tdpbusd, wide_mac_of
from tvm_backend.macs.chain import chain_is_exact, elements_of
from tvm_backend.macs.pixels import load_group, rows, spread
from tvm_backend.macs.vector import load, store

ROWS = 64


def _mac_kernel(mac: Mac, steps: int) -> Kernel:
    """ROWS independent chains of `steps` multiply-accumulates, for each pixel of the idiom."""
    idiom = mac.idiom
    lanes, reduction, pixels = idiom.lanes, idiom.reduction, idiom.pixels
    per_step = lanes * reduction
    params = (
        Param("x", (ROWS * pixels * steps * reduction,), idiom.storage),
        Param("w", (ROWS * steps * per_step,), "int8"),
        Param("acc", (ROWS * lanes,), idiom.accumulator),
        Param("y", (ROWS * pixels * lanes,), idiom.accumulator),
    )
    name = f"mac_test_{steps}__{idiom.name}"

    def build(abi: Abi):
        with prim_func(name, params, abi) as (built, p):
            for row in range(ROWS):
                acc = spread(mac, load(p["acc"], row * lanes, lanes))
                first = row * pixels
                offsets = [(first + i) * steps * reduction for i in range(pixels)]
                activations = load_group(mac, p["x"], offsets, steps)
                weights = [
                    mac.load_weights(p["w"], (row * steps + i) * per_step) for i in range(steps)
                ]
                acc = mac.multiply_accumulate(acc, activations, weights)
                for i, result in enumerate(rows(mac, acc)):
                    store(p["y"], (first + i) * lanes, result, lanes)
        return built.func

    *inputs, output = (Flat(p.shape, p.dtype) for p in params)
    return Kernel(name, build, tuple(inputs), (), output)


def _operands(idiom: MacIdiom, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random operands; the first rows hold every combination of extremes."""
    rng = np.random.default_rng(7)
    limits = np.iinfo(idiom.storage)
    low, high = int(limits.min), int(limits.max)
    x = rng.integers(low, high + 1, (ROWS, idiom.pixels, steps, idiom.reduction))
    w = rng.integers(-128, 128, (ROWS, steps, idiom.lanes, idiom.reduction))
    extremes = [(a, b) for a in (low, high) for b in (-128, -127, 127)]
    for row, (a, b) in enumerate(extremes):
        x[row], w[row] = a, b
    if idiom.chain:
        w = _largest_chains(idiom, w, low, high)
    largest = 1 << (30 if idiom.accumulator == "int32" else 48)
    acc = rng.integers(-largest, largest, (ROWS, idiom.lanes))
    return x.astype(idiom.storage), w.astype("int8"), acc.astype(idiom.accumulator)


def _largest_chains(idiom: MacIdiom, w: np.ndarray, low: int, high: int) -> np.ndarray:
    """Codes scaled so that chains reach the bounds of int16, as closely as they can, and no more.

    An element sums `count` products; none may exceed its share of the bound.
    """
    count = w.shape[1] * idiom.reduction // elements_of(idiom)
    largest = min((32767 // max(high, -low)) // count, 127)
    limited = np.clip(w, -largest, largest)
    assert chain_is_exact(limited.swapaxes(1, 2).reshape(ROWS, idiom.lanes, -1), idiom, low, high)
    return limited


def _check(target: Target, mac: Mac, steps: int) -> None:
    x, w, acc = _operands(mac.idiom, steps)
    sums = np.einsum("npsr,nslr->npl", x.astype("int64"), w.astype("int64"))
    expected = acc[:, None] + sums
    kernel = _mac_kernel(mac, steps)
    got = run_kernel(kernel, target, x.reshape(-1), w.reshape(-1), acc.reshape(-1))
    assert (got.reshape(expected.shape) == expected).all()


def _check_all(target: Target) -> None:
    """The idioms for 8-bit activations and both for 16-bit ones."""
    wide = [wide_mac_of(target, "int32"), wide_mac_of(target, "int64")]
    macs = [*wide, *map(mac_of, (*target.idioms, *target.taps))]
    for mac in macs:
        for steps in {1, mac.unroll}:
            _check(target, mac, steps)


@pytest.mark.parametrize("target", [X86_VNNI, X86_AVX512, X86_AVX_VNNI, X86_AVX2, GENERIC], ids=str)
def test_host_mac_equals_description(target: Target) -> None:
    _check_all(target)


@pytest.mark.parametrize(("rows", "depth"), [(16, 64), (7, 4), (1, 36)])
def test_matrix_tiles_equal_their_description(rows: int, depth: int) -> None:
    unit = X86_AMX.tiles
    assert unit is tdpbusd.UNIT
    rng = np.random.default_rng(rows)
    x = rng.integers(0, 256, (rows, depth + 8), np.uint8)  # rows lie apart
    w = rng.integers(-128, 128, (depth // unit.reduction, unit.lanes, unit.reduction), np.int8)
    start = rng.integers(-(2**31), 2**31, unit.lanes, np.int64).astype(np.int32)
    size, name = rows * unit.lanes, f"tiles_{rows}x{depth}"
    params = [
        Param("x", (x.size,), "uint8"), Param("w", (w.size,), "int8"),
        Param("start", (unit.lanes,), "int32"), Param("tiles", (64,), "uint8"),
        Param("y", (size,), "int32"),
    ]  # fmt: skip

    def build(abi: Abi) -> object:
        with prim_func(name, params, abi) as (built, p), tdpbusd.configured(p["tiles"]):
            tdpbusd.load(3, p["start"], 0, 0)  # the same row again and again
            tdpbusd.load(5, p["x"], 0, depth + 8)
            tdpbusd.load(6, p["w"], 0, tdpbusd.ROW_BYTES)
            tdpbusd.multiply_accumulate(3, 5, 6)
            tdpbusd.store(3, p["y"], 0, tdpbusd.ROW_BYTES)
        return built.func

    storages = [Flat(p.shape, p.dtype) for p in params]
    constants = (w.reshape(-1), start, tdpbusd.configuration(rows, depth))
    kernel = Kernel(name, build, (storages[0],), constants, storages[-1])
    got = run_kernel(kernel, X86_AMX, x.reshape(-1)).reshape(rows, -1)
    wide = w.astype(np.int64).transpose(0, 2, 1).reshape(depth, unit.lanes)
    expected = x[:, :depth].astype(np.int64) @ wide + start
    assert (got == expected.astype(np.int32)).all()  # modulo 2^32


@pytest.mark.qemu
@pytest.mark.parametrize("target", [CORTEX_A53, CORTEX_A76, NEOVERSE_V1, ARMV7_NEON], ids=str)
def test_arm_mac_equals_description(target: Target) -> None:
    _check_all(target)


def test_every_idiom_has_an_implementation_of_its_name() -> None:
    assert set(MACS) == set(idioms.ALL)
    assert all(mac.idiom == idiom for idiom, mac in MACS.items())


def test_unknown_idiom_is_an_error() -> None:
    with pytest.raises(TargetError, match="no implementation"):
        mac_of(MacIdiom("imaginary", 4, 1, signed_activations=False, registers=8))
