"""The comparisons of the suite. Integers are equal or within counted LSB; floats have one table.

A failing comparison names the worst channel, because that is where a wrong axis, scale or shift
shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Float comparisons, relative to the largest magnitude of the expected tensor.
SAME_ARITHMETIC = 1e-5  # the same operations in another order (graph rewrites in float32)
FOLDED = 5e-5  # constants folded in float64, then rounded to float32
ACCUMULATORS = 1e-5  # int32 accumulators times one float32 scale against float32 sums


def _worst_channel(difference: Tensor, axis: int) -> str:
    """The channel with the largest difference, with its count of differing elements."""
    if difference.ndim <= axis:
        return f"largest difference {float(difference.max()):.6g}"
    channels = difference.movedim(axis, 0).reshape(difference.shape[axis], -1)
    worst = int(channels.amax(1).argmax())
    return (
        f"worst channel {worst} of {len(channels)} (axis {axis}): largest difference "
        f"{float(channels[worst].max()):.6g}, {int((channels[worst] > 0).sum())} of "
        f"{channels.shape[1]} elements differ"
    )


def assert_same(actual: Tensor, expected: Tensor, where: str = "", axis: int = 1) -> None:
    """Equal shape, dtype and integers.

    Args:
        actual: What the code computed.
        expected: What it must be.
        where: Name of the value, for the message.
        axis: Channel axis, for the message.
    """
    assert actual.shape == expected.shape, f"{where}: {actual.shape} != {expected.shape}"
    assert actual.dtype == expected.dtype, f"{where}: {actual.dtype} != {expected.dtype}"
    if torch.equal(actual, expected):
        return
    difference = (actual.double() - expected.double()).abs()
    raise AssertionError(f"{where}: integers differ; {_worst_channel(difference, axis)}")


def assert_within_lsb(
    actual: Tensor,
    expected: Tensor,
    max_lsb: int = 1,
    fraction: float = 1.0,
    where: str = "",
    axis: int = 1,
) -> None:
    """Codes differ by at most `max_lsb`, and at all only for `fraction` of the elements."""
    assert actual.shape == expected.shape, f"{where}: {actual.shape} != {expected.shape}"
    difference = (actual.double() - expected.double()).abs()
    if difference.numel() == 0:
        return
    report = _worst_channel(difference, axis)
    assert float(difference.max()) <= max_lsb, f"{where}: more than {max_lsb} LSB; {report}"
    differing = float((difference > 0).double().mean())
    assert differing <= fraction, f"{where}: {differing:.2%} of the codes differ; {report}"


def assert_close(
    actual: Tensor,
    expected: Tensor,
    tolerance: float = SAME_ARITHMETIC,
    where: str = "",
    axis: int = 1,
) -> None:
    """Floats equal up to `tolerance` times the largest expected magnitude."""
    assert actual.shape == expected.shape, f"{where}: {actual.shape} != {expected.shape}"
    difference = (actual.double() - expected.double()).abs()
    largest = float(expected.double().abs().max()) if expected.numel() else 0.0
    assert bool(torch.isfinite(actual).all()), f"{where}: NaN or infinite values"
    if difference.numel() and float(difference.max()) > tolerance * max(largest, 1e-3):
        report = _worst_channel(difference, axis)
        raise AssertionError(f"{where}: beyond {tolerance} of {largest:.4g}; {report}")
