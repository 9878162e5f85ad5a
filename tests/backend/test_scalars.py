"""Zero points, multipliers, float scales and halos are data: kernels differing in them are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxquant import targets
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.emit_harness import HALO, codes, value
from tvm_backend.call import Call
from tvm_backend.emit.table import EMIT
from tvm_backend.kernel import Kernel

BOUNDS = {"qmin": 0, "qmax": 255}
IMAGE, OTHER = codes(1, 1, 16, 4, 4), codes(2, 1, 16, 4, 4)
WINDOWS = ((0, 2, 1), (2, 4, 1))


def kernel(
    function: Callable[..., Any], inputs: list[torch.Tensor], result: torch.Tensor, fill: int,
    tensors: dict[str, torch.Tensor] | None = None, target: Target = targets.X86_AVX2,
    **numbers: Any,
) -> Kernel:  # fmt: skip
    """What an emitter makes of a call."""
    sources = tuple(value(f"x{i}", x, target) for i, x in enumerate(inputs))
    output = value("y", result, target, halo=HALO, zero_point=fill)
    arrays = {name: tensor.numpy() for name, tensor in (tensors or {}).items()}
    (made,) = EMIT[function](Call("node", sources, arrays, numbers, output, target))
    return made


def requantize(a: int, shift: int = -6, qmax: int = 255) -> Kernel:
    numbers = {"zero_point": a, "multiplier": 20000 + a, "output_zero_point": a + 1}
    return kernel(
        reference.requantize, [IMAGE], IMAGE, a, shift=shift, qmin=0, qmax=qmax, **numbers
    )


def add(a: int, shift: int = -6, qmax: int = 255) -> Kernel:
    numbers = {"zero_points": (a, 3), "multipliers": (20000, 20000 + a), "output_zero_point": a}
    bounds = {"qmin": 0, "qmax": qmax}
    return kernel(reference.add, [IMAGE, OTHER], IMAGE, a, shifts=(-6, shift), **numbers, **bounds)


def mul(a: int, shift: int = 3, qmax: int = 255) -> Kernel:
    numbers = {"zero_points": (3, a), "multiplier": 20000 + a, "output_zero_point": a}
    bounds = {"qmin": 0, "qmax": qmax}
    return kernel(reference.mul, [IMAGE, OTHER], IMAGE, a, shift=shift, **numbers, **bounds)


def concat(a: int, shift: int = -6, qmax: int = 255) -> Kernel:
    numbers = {"zero_points": (a, 3), "multipliers": (20000, 20000 + a), "output_zero_point": a}
    bounds = {"qmin": 0, "qmax": qmax}
    both = torch.cat([IMAGE, OTHER], 1)
    return kernel(
        reference.concat, [IMAGE, OTHER], both, a, axis=1, shifts=(-6, shift), **numbers, **bounds
    )


def avg_pool2d(a: int, shift: int = 2, qmax: int = 255) -> Kernel:
    tensors = {"multiplier": torch.full((2, 2), 20000 + a), "shift": torch.full((2, 2), shift)}
    numbers = {"rows": WINDOWS, "cols": WINDOWS, "zero_point": a, "output_zero_point": a + 1}
    result = IMAGE[:, :, :2, :2]
    return kernel(reference.avg_pool2d, [IMAGE], result, a, tensors, qmin=0, qmax=qmax, **numbers)


def quantize(a: int, _: int = 0, qmax: int = 255) -> Kernel:
    numbers = {"scale": 0.1 * a + 0.3, "zero_point": a}
    return kernel(reference.quantize, [IMAGE.float()], IMAGE, a, qmin=0, qmax=qmax, **numbers)


@pytest.mark.parametrize("make", [requantize, add, mul, concat, avg_pool2d, quantize])
def test_other_scales_and_zero_points_are_other_data(make: Callable[..., Kernel]) -> None:
    first, second = make(1), make(2)
    assert first.name == second.name
    pairs = zip(first.constants, second.constants, strict=True)
    assert any((a != b).any() for a, b in pairs)
    assert make(1, qmax=200).name != first.name


@pytest.mark.parametrize("make", [requantize, add, mul, concat, avg_pool2d])
def test_other_shifts_are_other_code(make: Callable[..., Kernel]) -> None:
    assert make(1, 1).name != make(1, 0).name


def test_an_operand_on_the_grid_of_the_result_is_copied_by_other_code() -> None:
    def with_zero_point(zero_point: int) -> str:
        numbers = {"zero_points": (9, zero_point), "multipliers": (1 << 14, 1 << 14)}
        both = torch.cat([IMAGE, OTHER], 1)
        return kernel(
            reference.concat, [IMAGE, OTHER], both, 9, axis=1, shifts=(-7, -7),
            output_zero_point=9, **numbers, **BOUNDS,
        ).name  # fmt: skip

    assert with_zero_point(8) == with_zero_point(7) != with_zero_point(9)


def test_dequantization_shares_code_too() -> None:
    def made(scale: float, zero_point: int) -> Kernel:
        return kernel(
            reference.dequantize, [IMAGE], IMAGE.float(), 0, scale=scale, zero_point=zero_point
        )

    assert made(0.5, 3).name == made(0.7, 4).name
    assert [array.tolist() for array in made(0.5, 3).constants] == [[0.5], [3]]
