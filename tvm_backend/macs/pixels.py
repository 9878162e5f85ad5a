"""Accumulators of one pixel or of several: what surrounds the steps of any idiom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from fxquant.targets import MacIdiom
from tvm_backend.macs.base import Mac, MatrixMac

P = TypeVar("P")


def accumulator_type(idiom: MacIdiom) -> str:
    """Type of an accumulator."""
    return f"{idiom.accumulator}x{idiom.pixels * idiom.lanes}"


def pixel_groups(pixels: Sequence[P], idiom: MacIdiom) -> list[Sequence[P]]:
    """Pixels that share an accumulator; the last group may be smaller."""
    return [pixels[i : i + idiom.pixels] for i in range(0, len(pixels), idiom.pixels)]


def load_group(mac: Mac, buffer: Any, offsets: Sequence[Any], steps: int) -> list[Any]:
    """Activations of `steps` reduction steps of a group of pixels.

    Args:
        mac: The idiom.
        buffer: Where they are.
        offsets: First element of every pixel.
        steps: 1 or `mac.unroll`.
    """
    loaded = [mac.load_activations(buffer, offset, steps) for offset in offsets]
    if isinstance(mac, MatrixMac):
        return [mac.join(step) for step in zip(*loaded, strict=True)]
    (single,) = loaded
    return single


def spread(mac: Mac, row: Any) -> Any:
    """The accumulator that starts every pixel of a group at `row`."""
    return mac.spread(row) if isinstance(mac, MatrixMac) else row


def rows(mac: Mac, acc: Any) -> list[Any]:
    """One vector for each pixel of a group."""
    return mac.rows(acc) if isinstance(mac, MatrixMac) else [acc]
