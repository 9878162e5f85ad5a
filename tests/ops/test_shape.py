"""Operators that move codes: equal to torch on the codes, value by value."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxquant.numerics import reference
from fxquant.ops import OPS, Grid, shape
from tests.ops.harness import run_integer, value
from tests.tolerance import assert_same

X = value((2, 6, 5, 7), zero_point=50)
CASES = {
    "flatten": (shape.reshape, {"shape": (0, 210)}, lambda x: x.flatten(1)),
    "infer": (shape.reshape, {"shape": (0, -1, 5)}, lambda x: x.reshape(2, -1, 5)),
    "merge_batch": (shape.reshape, {"shape": (12, 5, 7)}, lambda x: x.reshape(12, 5, 7)),
    "permute": (shape.permute, {"dims": (0, 2, 3, 1)}, lambda x: x.permute(0, 2, 3, 1)),
    "slice": (shape.slice_axis, {"axis": 3, "start": 1, "stop": 6, "step": 2},
              lambda x: x[..., 1:6:2]),
    "slice_batch": (shape.slice_axis, {"axis": 0, "start": 1, "stop": 2, "step": 1},
                    lambda x: x[1:2]),
    "shuffle": (shape.channel_shuffle, {"groups": 3}, lambda x: F.channel_shuffle(x, 3)),
    "pad": (shape.pad, {"pads": ((0, 0), (1, 2), (0, 3), (2, 0)), "value": 0.0},
            lambda x: F.pad(x, (2, 0, 0, 3, 1, 2), value=50)),
    "crop": (shape.pad, {"pads": ((0, 0), (0, 0), (-1, 2), (0, -2)), "value": 0.0},
             lambda x: F.pad(x, (0, -2, -1, 2), value=50)),
    "pad_low": (shape.pad, {"pads": ((0, 0), (0, 0), (1, 1), (1, 1)), "value": -1e9},
                lambda x: F.pad(x, (1, 1, 1, 1), value=0)),
    "reflect": (shape.gather2d, {"rows": (1, 0, 1, 2, 3, 4, 3), "cols": tuple(range(7))},
                lambda x: F.pad(x.float(), (0, 0, 1, 1), "reflect").to(torch.uint8)),
    "nearest": (shape.gather2d, {"rows": (0, 0, 1, 1, 2, 2, 3, 3, 4, 4), "cols": tuple(range(7))},
                lambda x: x.repeat_interleave(2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_moves_codes_as_torch_does(name: str) -> None:
    function, kwargs, expected = CASES[name]
    wanted = expected(X.codes).contiguous()
    codes = run_integer(function, {"x": X}, X.grid, wanted.ndim, **kwargs)
    assert_same(codes, wanted)


def test_shape_operators_share_grids() -> None:
    """Moving values must never cost a rounding."""
    for function in (case[0] for case in CASES.values()):
        assert OPS[function].grid is Grid.SHARED


def test_every_reference_operator_has_a_test_here() -> None:
    """A new reference operator without a comparison against torch fails this list."""
    tested = {
        "add", "avg_pool2d", "avg_pool2d_accumulate", "channel_shuffle", "concat", "conv2d",
        "conv2d_accumulate", "conv_transpose2d", "conv_transpose2d_accumulate", "dequantize",
        "dequantize_accumulator", "gather2d", "linear", "linear_accumulate",
        "local_response_norm", "lookup", "max_pool2d", "mul", "pad", "permute", "quantize",
        "requantize", "reshape", "resize_linear2d", "slice_axis",
    }  # fmt: skip
    assert set(reference.__all__) == tested
