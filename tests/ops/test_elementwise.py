"""Tables, sums, products, concatenation and local response norm against float64 torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxquant.errors import NumericsError
from fxquant.numerics import reference
from fxquant.numerics.width import width_of
from fxquant.ops.arithmetic import add, concat, mul
from fxquant.ops.elementwise import FUNCTIONS, affine, clamp, power, prelu
from fxquant.ops.opdef import Operand
from fxquant.ops.pool import local_response_norm
from tests.ops.harness import Value, check, grid_for, quantized, run_integer, value
from tests.tolerance import assert_same

ARGUMENTS = {
    clamp: [{"clamp": (0.0, None)}, {"clamp": (0.0, 6.0)}, {"clamp": (-0.5, 0.25)}],
    affine: [{"scale": -1.7, "offset": 0.3}, {"scale": 1.0, "offset": -2.0}],
    power: [{"exponent": 2.0}, {"exponent": 3.0}],
    F.leaky_relu: [{}, {"negative_slope": 0.3}],
    F.elu: [{"alpha": 0.7}],
    F.gelu: [{}, {"approximate": "tanh"}],
    F.softplus: [{}, {"beta": 2.0, "threshold": 5.0}],
}
CASES = [(f, arguments) for f in FUNCTIONS for arguments in ARGUMENTS.get(f, [{}])]


def all_codes(bits: int, zero_point: int, span: float = 6.0) -> Value:
    """Every code of a grid once."""
    levels = 1 << bits
    scale = float(torch.tensor(span / (levels - 1)))
    codes = torch.arange(levels, dtype=torch.int32).to(width_of(bits).codes)
    return Value(codes, Operand(scale, zero_point, 0, levels - 1))


@pytest.mark.parametrize(
    ("function", "arguments"), CASES, ids=[f"{f.__name__}-{i}" for i, (f, _) in enumerate(CASES)]
)
@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 131), (8, 255), (4, 7), (2, 1)])
def test_table_equals_quantized_function(function, arguments, bits: int, zero_point: int) -> None:
    """For all codes: the table IS the float function, rounded once."""
    x = all_codes(bits, zero_point)
    expected = function(x.real, **arguments)
    grid = grid_for(expected)
    codes = run_integer(function, {"x": x}, grid, 1, **arguments)
    assert_same(codes, quantized(expected, grid).to(torch.uint8))


def test_table_of_a_function_with_poles() -> None:
    """0 ** -1 is infinite and saturates; (-1) ** 0.5 is NaN and becomes the zero point."""
    x, grid = all_codes(8, 128), Operand(0.1, 20, 0, 255)
    inverse = run_integer(power, {"x": x}, grid, 1, exponent=-1.0)
    assert int(inverse[128]) == 255
    root = run_integer(power, {"x": x}, grid, 1, exponent=0.5)
    assert bool((root[:128] == 20).all())


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3, 1), (1, 17, 3, 3)])
def test_prelu(shape: tuple[int, ...]) -> None:
    x = value(shape)
    for slope in (torch.tensor([0.25]), torch.linspace(-0.5, 1.5, shape[1])):
        expected = F.prelu(x.real, slope.double())
        grid = grid_for(expected)
        codes = run_integer(prelu, {"x": x}, grid, len(shape), slope=slope)
        assert_same(codes, quantized(expected, grid).to(torch.uint8))


@pytest.mark.parametrize("shapes", [((2, 3, 5, 7), (2, 3, 5, 7)), ((2, 5, 3, 3), (2, 5, 1, 1)),
                                    ((1, 1), (1, 1)), ((3, 17), (3, 17))])  # fmt: skip
@pytest.mark.parametrize("clamp_", [None, (0.0, None)])
def test_add_and_mul(shapes, clamp_) -> None:
    a, b = value(shapes[0], 1, 40), value(shapes[1], 2, 200, span=1.3)
    for function, expected in ((add, a.real + b.real), (mul, a.real * b.real)):
        bounded = expected if clamp_ is None else expected.clamp(*clamp_)
        # the grid of a sum has room for its operands, whatever values they happen to have
        values = [expected, a.grid.codes()[[0, -1]], b.grid.codes()[[0, -1]]]
        grid = grid_for(torch.cat([v.flatten() for v in values]))
        check(function, {"a": a, "b": b}, bounded, fraction=0.08, grid=grid, clamp=clamp_)


def test_add_and_mul_of_a_value_with_itself() -> None:
    a = value((2, 3, 5), 1, 40)
    check(add, {"a": a, "b": a}, a.real * 2)
    check(mul, {"a": a, "b": a}, a.real**2)


@pytest.mark.parametrize(("ratio", "fits"), [(1.0, True), (1.99, True), (2.0, False)])
def test_sum_on_a_grid_too_fine_for_its_operand_is_refused(ratio: float, fits: bool) -> None:
    a = value((2, 3, 5), 1, 0)
    grid = Operand(a.grid.scale / ratio, 0, 0, 255)
    assert grid.holds(a.grid) == fits
    if not fits:
        with pytest.raises(NumericsError, match="too fine for its operand"):
            run_integer(add, {"a": a, "b": a}, grid, 3)


def test_add_of_narrow_operands() -> None:
    a, b = value((2, 9, 5), 1, 1, bits=2), value((2, 9, 5), 2, 3, bits=3)
    check(add, {"a": a, "b": b}, a.real + b.real, bits=4, fraction=0.3)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 4, 5] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] = 2 * i + 1
    operands = [value(tuple(s), i, 50 * i, span=1.0 + i) for i, s in enumerate(shapes)]
    expected = torch.cat([v.real for v in operands], axis)
    check(concat, {"tensors": tuple(operands)}, expected, axis=axis)


def test_requantize_is_concat_of_one() -> None:
    x = value((2, 3, 5), zero_point=9)
    kwargs = {"zero_points": (9,), "multipliers": (20000,), "shifts": (-7,)}
    grid = {"output_zero_point": 3, "qmin": 0, "qmax": 255}
    moved = reference.requantize(x.codes, zero_point=9, multiplier=20000, shift=-7, **grid)
    assert_same(moved, reference.concat([x.codes], axis=1, **kwargs, **grid))
    real = (x.codes.double() - 9) * 20000 * 2.0 ** -(15 - 7 + 6) + 3
    assert float((moved.double() - real.clamp(0, 255)).abs().max()) <= 0.51


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("alpha", "k"), [(1e-4, 1.0), (2.0, 2.0), (0.5, 0.01)])
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_local_response_norm(size: int, alpha: float, k: float, channels: int) -> None:
    x = value((2, channels, 3, 4), zero_point=20)
    expected = F.local_response_norm(x.real, size, alpha, 0.75, k)
    check(local_response_norm, {"x": x}, expected, size=size, alpha=alpha, beta=0.75, k=k)


def test_lookup_per_channel() -> None:
    table = torch.stack([torch.arange(256), 255 - torch.arange(256)]).to(torch.uint8)
    x = torch.tensor([[[3, 4]], [[5, 250]]], dtype=torch.uint8).reshape(1, 2, 1, 2)
    assert reference.lookup(x, table).flatten().tolist() == [3, 4, 250, 5]
