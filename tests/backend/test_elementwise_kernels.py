"""Boundary and elementwise kernels equal their reference operators."""

from __future__ import annotations

import pytest
import torch

from fxquant import targets
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.emit_harness import HALO, LANE_SIZES, NATIVE, check, codes, each_target
from tvm_backend.kernel import Abi

GRID = {"output_zero_point": 9, "qmin": 0, "qmax": 255}
NARROW = {"output_zero_point": 9, "qmin": 30, "qmax": 200}


def floats(*shape: int) -> torch.Tensor:
    """Random floats that hit ties, both saturations, NaN and infinities."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 60
    special = [0.5, 1.5, 2.5, -0.5, -1.5, float("nan"), float("inf"), -float("inf"), 1e38, -1e-42]
    count = min(len(special), x.numel())
    x.view(-1)[:count] = torch.tensor(special[:count])
    return x


@each_target
@pytest.mark.parametrize(
    "shape", [(2, 3, 9, 17), (1, 17, 2, 33), (2, 33), (2, 3, 31), (5,)], ids=str
)
def test_quantize(target: Target, shape: tuple[int, ...]) -> None:
    halo = HALO if len(shape) == 4 else (0, 0, 0, 0)
    numbers = {"scale": 0.37, "zero_point": 11, "qmin": 3, "qmax": 250}
    check(reference.quantize, target, [floats(*shape)], numbers, halo=halo, multiple=4)
    numbers = {"scale": 1.0, "zero_point": 128, "qmin": 0, "qmax": 255}
    check(reference.quantize, target, [floats(*shape)], numbers, halo=halo)


@each_target
@pytest.mark.parametrize("shape", [(2, 17, 5, 7), (2, 33), (2, 3, 31), (2, 5, 1, 1)], ids=str)
def test_dequantize(target: Target, shape: tuple[int, ...]) -> None:
    x = codes(1, *shape)
    check(reference.dequantize, target, [x], {"scale": 0.0371, "zero_point": 11})
    generator = torch.Generator().manual_seed(1)
    acc = torch.randint(-(1 << 31), (1 << 31) - 1, shape, generator=generator).to(torch.int32)
    for axis in (1, -1):
        scale = {"scale": torch.rand(shape[axis], generator=generator)}
        numbers = {"axis": axis, "lower": -1e8, "upper": 3e8}
        check(reference.dequantize_accumulator, target, [acc], numbers, scale)
    numbers = {"axis": 1, "lower": None, "upper": None}
    check(reference.dequantize_accumulator, target, [acc], numbers, {"scale": torch.rand(1)})


@pytest.mark.parametrize("channels", LANE_SIZES)
@pytest.mark.parametrize("abi", Abi)
def test_add_at_every_lane_size(channels: int, abi: Abi) -> None:
    a, b = codes(1, 2, channels, 3, 5), codes(2, 2, channels, 3, 5)
    numbers = {"zero_points": (0, 255), "multipliers": (23456, 17000), "shifts": (-6, -8), **GRID}
    check(reference.add, targets.X86_VNNI, [a, b], numbers, halo=HALO, abi=abi)


@each_target
@pytest.mark.parametrize("shift", [-14, -8, -7, 0, 1, 24])
def test_requantization_of_every_code(target: Target, shift: int) -> None:
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 4, 4)
    for zero_point, multiplier in ((0, (1 << 15) - 1), (255, 23456)):
        numbers = {"zero_point": zero_point, "multiplier": multiplier, "shift": shift, **NARROW}
        check(reference.requantize, target, [x], numbers)


@each_target
@pytest.mark.parametrize("shift", [-14, -3, 0, 1, 2, 17, 18, 24])
def test_products_of_all_codes(target: Target, shift: int) -> None:
    """Every pair of codes, at both ends of the zero points and multipliers."""
    every = torch.arange(256, dtype=torch.uint8)
    x, y = every.view(1, 256, 1, 1).expand(1, 256, 1, 256), every.expand(1, 256, 1, 256)
    for zero_points, multiplier in (((0, 0), (1 << 15) - 1), ((255, 7), 1 << 14)):
        numbers = {"zero_points": zero_points, "multiplier": multiplier, "shift": shift, **NARROW}
        check(reference.mul, target, [x.contiguous(), y.contiguous()], numbers)


@each_target
@pytest.mark.parametrize("channels", LANE_SIZES)
def test_gates_of_every_lane_size(target: Target, channels: int) -> None:
    """One code a channel times an image: rows of channels shared by all pixels."""
    x, gate = codes(1, 2, channels, 3, 5), codes(2, 2, channels, 1, 1)
    numbers = {"zero_points": (121, 0), "multiplier": 23456, "shift": 3, **GRID}
    check(reference.mul, target, [x, gate], numbers, halo=HALO)
    check(reference.mul, target, [gate, x], {**numbers, **NARROW}, multiple=8)


@each_target
def test_broadcasting(target: Target) -> None:
    x = codes(1, 2, 33, 4, 5)
    numbers = {"zero_points": (11, 128), "multiplier": 23456, **GRID}
    for other in ((2, 33, 1, 1), (33, 1, 1), (1, 1, 4, 5), (2, 1, 4, 5), (1,), (2, 33, 4, 1)):
        shift = 2 if len(other) == 4 else -14
        y = codes(2, *other)
        check(reference.mul, target, [x, y], {**numbers, "shift": shift}, halo=HALO)
    two = {"zero_points": (11, 128), "multipliers": (20000, 30000), "shifts": (-6, -7), **GRID}
    check(reference.add, target, [codes(3, 2, 17, 1, 1), x[:, :17]], two)
    check(reference.add, target, [codes(3, 2, 7, 17), codes(4, 7, 17)], two)


@each_target
@pytest.mark.parametrize("channels", [3, 16, 17, 33])
def test_concat(target: Target, channels: int) -> None:
    x, y = codes(1, 2, channels, 5, 7), codes(2, 2, channels + 1, 5, 7)
    numbers = {
        "zero_points": (3, 9, 0), "multipliers": (20000, 1 << 14, 32767), "shifts": (-6, -7, -14),
        **GRID,
    }  # fmt: skip
    check(reference.concat, target, [x, y, x], {"axis": 1, **numbers}, halo=HALO)
    check(reference.concat, target, [x, x, x], {"axis": -2, **numbers}, halo=HALO)


@each_target
@pytest.mark.parametrize("channels", [3, 16, 17, 80])
def test_lookup(target: Target, channels: int) -> None:
    x = codes(1, 2, channels, 5, 7)
    check(reference.lookup, target, [x], {}, {"table": codes(2, 256)}, halo=HALO)
    check(reference.lookup, target, [x], {}, {"table": codes(2, channels, 256)}, halo=HALO)


def test_lookup_of_other_ranks() -> None:
    for target in NATIVE:
        for shape in ((2, 33), (2, 5, 31), (300,)):
            check(reference.lookup, target, [codes(1, *shape)], {}, {"table": codes(2, 256)})
        table = {"table": codes(2, 5, 256)}
        check(reference.lookup, target, [codes(1, 2, 5, 31)], {}, table)


@each_target
@pytest.mark.parametrize(("channels", "size"), [(3, 5), (16, 4), (33, 5), (17, 1)])
def test_local_response_norm(target: Target, channels: int, size: int) -> None:
    numbers = {"size": size, "zero_point": 100, "offset": 1234.5, "factor": 3.3e3, **GRID}
    x = codes(1, 2, channels, 5, 7)
    check(reference.local_response_norm, target, [x], numbers, halo=HALO)
