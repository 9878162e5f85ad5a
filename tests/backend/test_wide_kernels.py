"""Kernels that read or make 16-bit codes equal their reference operators, also mixed with 8 bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxquant.numerics import reference
from fxquant.targets import ARMV7_NEON, CORTEX_A53, GENERIC, X86_AVX2, X86_VNNI, Target
from tests.backend.emit_harness import HALO, check, codes
from tests.backend.integer_nets import windows
from tests.backend.test_elementwise_kernels import floats
from tvm_backend.kernel import Abi

each_target = pytest.mark.parametrize(
    "target",
    [
        X86_VNNI, X86_AVX2,
        pytest.param(GENERIC, marks=pytest.mark.slow),
        pytest.param(CORTEX_A53, marks=pytest.mark.qemu),
        pytest.param(ARMV7_NEON, marks=[pytest.mark.qemu, pytest.mark.slow]),
    ],
    ids=str,
)  # fmt: skip
# Bits of the operand and of the result, at least one of them 16.
each_pair = pytest.mark.parametrize(("bits", "width"), [(16, 16), (16, 8), (8, 16)])


def grid(width: int, zero_point: int = 9) -> dict[str, int]:
    """A result's grid whose clip bounds cut."""
    top = (1 << width) - 1
    return {
        "output_zero_point": zero_point, "qmin": top // 50, "qmax": top - top // 40, "width": width,
    }  # fmt: skip


def multiplier(width: int, share: float = 0.7) -> int:
    """m, `share` of the way between its bounds."""
    top = 1 << (2 * width - 1)
    return int(top / 2 * (1 + share))


def shift_for(bits: int, width: int, extra: int = 0) -> int:
    """s that maps the range of `bits`-bit codes onto that of `width`-bit codes."""
    return bits - width - (width - 2) - 1 + extra


@each_target
@pytest.mark.parametrize("shape", [(2, 3, 9, 17), (2, 33), (2, 3, 31), (5,)], ids=str)
def test_quantize_and_dequantize(target: Target, shape: tuple[int, ...]) -> None:
    halo = HALO if len(shape) == 4 else (0, 0, 0, 0)
    numbers = {"scale": 0.0037, "zero_point": 40000, "qmin": 3, "qmax": 65000, "width": 16}
    for multiple in (4, 16):
        check(reference.quantize, target, [floats(*shape)], numbers, halo=halo,
              zero_point=40000, multiple=multiple)  # fmt: skip
    x = codes(1, *shape, bits=16)
    check(reference.dequantize, target, [x], {"scale": 0.0371, "zero_point": 60001})


@each_target
@pytest.mark.parametrize("shape", [(2, 17, 5, 7), (2, 33), (2, 3, 31)], ids=str)
def test_dequantize_wide_accumulators(target: Target, shape: tuple[int, ...]) -> None:
    """int64 to float32 is rounded once, also beyond 2^24 and 2^32."""
    generator = torch.Generator().manual_seed(1)
    acc = torch.randint(-(1 << 48), 1 << 48, shape, generator=generator)
    acc = acc >> torch.randint(0, 48, shape, generator=generator)
    for axis in (1, -1):
        scale = {"scale": torch.rand(shape[axis], generator=generator)}
        numbers = {"axis": axis, "lower": -1e12, "upper": 3e12}
        check(reference.dequantize_accumulator, target, [acc], numbers, scale)


@each_target
@each_pair
def test_requantize_on_every_shift(target: Target, bits: int, width: int) -> None:
    x = codes(1, 1, 16, 9, 7, bits=bits)
    for shift in (-30, -15, -14, -1, 0, 1, 9, 24):
        if width == 8 and shift < -14:
            continue
        for zero_point, share in ((0, 0.9999), ((1 << bits) - 1, 0.3)):
            numbers = {"zero_point": zero_point, "multiplier": multiplier(width, share),
                       "shift": shift, **grid(width)}  # fmt: skip
            check(reference.requantize, target, [x], numbers)


@each_target
@pytest.mark.parametrize(("a", "b", "width"), [(16, 16, 16), (8, 16, 16), (16, 8, 8), (8, 8, 16)])
def test_add_mul_and_concat(target: Target, a: int, b: int, width: int) -> None:
    x, y = codes(1, 2, 17, 4, 5, bits=a), codes(2, 2, 17, 4, 5, bits=b)
    pair = {
        "zero_points": ((1 << a) // 3, (1 << b) - 1),
        "multipliers": (multiplier(width), multiplier(width, 0.2)),
        "shifts": (shift_for(a, width), shift_for(b, width)), **grid(width),
    }  # fmt: skip
    check(reference.add, target, [x, y], pair, halo=HALO)
    check(reference.concat, target, [x, y], {"axis": 1, **pair}, halo=HALO)
    check(reference.concat, target, [x, y], {"axis": 2, **pair}, halo=HALO)
    product = {
        "zero_points": pair["zero_points"], "multiplier": multiplier(width),
        "shift": shift_for(a + b, width), **grid(width),
    }  # fmt: skip
    for other in (y, y[:, :, :1, :1].contiguous(), y[:1, :1].contiguous()):
        check(reference.mul, target, [x, other], product, halo=HALO)


def test_concat_copies_operands_that_lie_on_the_grid() -> None:
    x = codes(1, 1, 16, 3, 3, bits=16)
    same = {"zero_points": (9, 9), "multipliers": (1 << 30,) * 2, "shifts": (-15, -15)}
    full = {"output_zero_point": 9, "qmin": 0, "qmax": 65535, "width": 16}
    check(reference.concat, GENERIC, [x, x], {"axis": 1, **same, **full})


@each_target
@each_pair
def test_lookup(target: Target, bits: int, width: int) -> None:
    for shape in ((2, 17, 5, 7), (2, 33), (300,)):
        x, table = codes(1, *shape, bits=bits), codes(2, 1 << bits, bits=width)
        check(reference.lookup, target, [x], {}, {"table": table})
    channels = {"table": codes(2, 5, 1 << bits, bits=width)}
    check(reference.lookup, target, [codes(1, 2, 5, 3, 7, bits=bits)], {}, channels, halo=HALO)


@each_target
@each_pair
def test_avg_pool2d(target: Target, bits: int, width: int) -> None:
    shifts = torch.arange(-14 if width == 8 else -30, 25, dtype=torch.int8)
    top = 1 << (2 * width - 1)
    generator = torch.Generator().manual_seed(0)
    m = torch.randint(top // 2, top, (1, len(shifts)), generator=generator)
    dtype = torch.int16 if width == 8 else torch.int32
    each = {"multiplier": m.to(dtype), "shift": shifts.reshape(1, -1)}
    for height in (1, 5):
        x = codes(1, 1, 17, height, len(shifts), bits=bits)
        cols = tuple((i, i + 1, 1) for i in range(len(shifts)))
        numbers = {"rows": ((0, height, 1),), "cols": cols, "zero_point": 77, **grid(width)}
        check(reference.avg_pool2d, target, [x], numbers, each, halo=HALO)
    one = {"multiplier": m[:, :1].to(dtype), "shift": shifts[:1].reshape(1, 1) + 9}
    x = codes(1, 2, 33, 7, 9, bits=bits)
    whole = {"rows": ((0, 7, 1),), "cols": ((0, 9, 1),), "zero_point": 77}
    check(reference.avg_pool2d, target, [x], {**whole, **grid(width)}, one)


@pytest.mark.parametrize("size", [129, 300])
def test_avg_pool2d_of_a_window_beyond_int32(size: int) -> None:
    """The sum of the codes; of the larger one also the sum of the stored zero points."""
    x = torch.full((1, 3, size, size), 65535, dtype=torch.uint16)
    whole = {"rows": ((0, size, 1),), "cols": ((0, size, 1),), "zero_point": 0}
    for target in (X86_AVX2, GENERIC):
        check(reference.avg_pool2d_accumulate, target, [x], whole)


@each_target
def test_operators_that_keep_the_grid(target: Target) -> None:
    x = codes(1, 2, 17, 7, 9, bits=16)
    cases: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (reference.max_pool2d, {"rows": windows(7, 3, 2, 1), "cols": windows(9, 3, 2, 1)}),
        (reference.max_pool2d, {"rows": ((0, 7, 1),), "cols": ((0, 9, 1), (0, 9, 1))}),
        (reference.slice_axis, {"axis": 1, "start": 1, "stop": 17, "step": 2}),
        (reference.pad, {"pads": ((0, 0), (1, 2), (1, 2), (-2, 1)), "value": 50001}),
        (reference.gather2d, {"rows": (0, 0, 4, 3), "cols": (6, 6, 1, 0, 2)}),
        (reference.channel_shuffle, {"groups": 17}),
        (reference.permute, {"dims": (0, 3, 1, 2)}),
        (reference.avg_pool2d_accumulate,
         {"rows": windows(7, 3, 2, 1), "cols": windows(9, 3, 2, 1), "zero_point": 50001}),
    ]  # fmt: skip
    for function, numbers in cases:
        halo = (0, 0, 0, 0) if function is reference.avg_pool2d_accumulate else HALO
        check(function, target, [x], numbers, halo=halo)
    for shape in ((0, -1), (0, 17, -1), (2, 17, 7, 9, 1)):
        check(reference.reshape, target, [x], {"shape": shape})


@each_target
def test_resize_linear2d(target: Target) -> None:
    one = 1 << 18
    taps = ((0, 1, one // 2), (1, 1, 0), (3, 6, one - 1), (5, 6, one))
    for zero_point in (0, 5, 65535):
        numbers = {"rows": taps, "cols": taps, "zero_point": zero_point, "qmin": 0, "qmax": 65535}
        x = codes(1, 2, 17, 7, 9, bits=16)
        check(reference.resize_linear2d, target, [x], numbers, halo=HALO)


@each_target
@each_pair
def test_local_response_norm(target: Target, bits: int, width: int) -> None:
    step = (1 << bits) / 256
    numbers = {"size": 5, "zero_point": int(100 * step), "offset": 1234.5 * step**2,
               "factor": 3.3e3 * step**0.5 * (1 << width) / 256, **grid(width)}  # fmt: skip
    check(reference.local_response_norm, target, [codes(1, 2, 17, 5, 7, bits=bits)], numbers,
          halo=HALO)  # fmt: skip


@pytest.mark.parametrize("abi", Abi)
def test_both_calling_conventions(abi: Abi) -> None:
    """The standalone passes narrow index arithmetic; int64 values must stay int64."""
    x, y = codes(1, 1, 17, 3, 5, bits=16), codes(2, 1, 17, 3, 5, bits=16)
    numbers = {"zero_points": (7, 40000), "multiplier": multiplier(16), "shift": 2, **grid(16)}
    for target in (X86_AVX2, GENERIC):
        check(reference.mul, target, [x, y], numbers, halo=HALO, abi=abi)
