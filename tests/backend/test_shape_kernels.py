"""Kernels that move values equal their reference operators."""

from __future__ import annotations

import pytest
import torch

from fxquant import targets
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.emit_harness import HALO, check, codes, each_target
from tvm_backend.emit.copies import Chunk, chunks
from tvm_backend.kernel import Abi


def test_chunks_stay_inside_both_pixels() -> None:
    assert chunks(33, 48, 48) == [Chunk(0, 16, 2), Chunk(32, 1, 1)]
    assert chunks(15, 16, 16) == [Chunk(0, 16, 1)]
    for count in range(1, 40):
        for source in range(count, count + 17):
            for target in range(count, count + 17):
                found = chunks(count, source, target)
                ends = [c.start + c.lanes * c.repeat for c in found]
                assert max(ends) <= min(source, target)
                assert ends[-1] >= count


@each_target
@pytest.mark.parametrize("channels", [3, 16, 17, 33])
def test_slice_axis(target: Target, channels: int) -> None:
    x = codes(1, 2, channels, 5, 7)
    for axis, start, stop, step in (
        (2, 1, 4, 1),
        (3, 0, 7, 3),
        (1, 1, channels, 1),
        (1, 0, channels, 2),
    ):
        numbers = {"axis": axis, "start": start, "stop": stop, "step": step}
        check(reference.slice_axis, target, [x], numbers, halo=HALO)


@each_target
@pytest.mark.parametrize("channels", [3, 17])
def test_pad(target: Target, channels: int) -> None:
    x = codes(1, 2, channels, 5, 7)
    for pads in (
        ((0, 0), (1, 2), (1, 2), (-2, 1)),
        ((1, 0), (0, 0), (0, 3), (2, 0)),
        ((0, 0), (-1, 0), (0, 0), (0, 0)),
    ):
        check(reference.pad, target, [x], {"pads": pads, "value": 99}, halo=HALO)


@each_target
def test_gather2d(target: Target) -> None:
    numbers = {"rows": (0, 0, 4, 3), "cols": (6, 6, 1, 0, 2)}
    for channels in (3, 33):
        check(reference.gather2d, target, [codes(1, 2, channels, 5, 7)], numbers, halo=HALO)


@each_target
@pytest.mark.parametrize(("channels", "groups"), [(116, 2), (24, 3), (68, 4), (6, 2), (16, 8)])
def test_channel_shuffle(target: Target, channels: int, groups: int) -> None:
    x = codes(1, 2, channels, 3, 5)
    check(reference.channel_shuffle, target, [x], {"groups": groups}, halo=HALO)


@each_target
def test_permute_and_reshape(target: Target) -> None:
    x = codes(1, 2, 17, 5, 7)
    check(reference.permute, target, [x], {"dims": (0, 3, 1, 2)}, halo=HALO)
    check(reference.permute, target, [codes(1, 2, 5, 33)], {"dims": (0, 2, 1)})
    for shape in ((0, -1), (0, 17, -1), (2, 5, 17, 7), (-1,), (2, 17, 5, 7, 1)):
        check(reference.reshape, target, [x], {"shape": shape})
    check(reference.reshape, target, [codes(1, 2, 3, 2, 2, 2)], {"shape": (0, -1)})


@pytest.mark.parametrize("abi", Abi)
def test_moves_of_floats(abi: Abi) -> None:
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    target = targets.X86_VNNI
    check(reference.permute, target, [x], {"dims": (0, 4, 1, 2, 3)}, abi=abi)
    pads = ((0, 0),) * 4 + ((1, 2),)
    check(reference.pad, target, [x], {"pads": pads, "value": 0.5}, abi=abi)
    check(reference.channel_shuffle, target, [x], {"groups": 3}, abi=abi)
    numbers = {"axis": 3, "start": 1, "stop": 4, "step": 2}
    check(reference.slice_axis, target, [x], numbers, abi=abi)
