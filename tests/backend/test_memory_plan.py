"""The memory plan: nothing overlaps, close to the lower bound, kernels run in place exactly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

from fxquant import targets
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.integer_nets import NetBuilder, residual_net
from tests.backend.kernel_harness import require
from tests.backend.test_build import wide_net
from tvm_backend.lower import lower
from tvm_backend.memory_plan import (
    ALIGNMENT,
    Lifetime,
    MemoryPlan,
    lifetimes,
    lower_bound,
    overwritten,
    plan_memory,
)
from tvm_backend.standalone import export_standalone


def check_separate(values: list[Lifetime], plan: MemoryPlan) -> None:
    """What lives at the same time has memory of its own, inside the arena."""
    for i, a in enumerate(values):
        assert plan.offsets[a.name] % ALIGNMENT == 0
        assert plan.offsets[a.name] + a.nbytes <= plan.nbytes
        for b in values[:i]:
            if a.overlaps(b):
                start_a, start_b = plan.offsets[a.name], plan.offsets[b.name]
                assert start_a + a.nbytes <= start_b or start_b + b.nbytes <= start_a


@st.composite
def random_lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    steps = draw(st.integers(1, 12))
    spans = draw(st.lists(st.tuples(st.integers(0, steps), st.integers(0, 5)), max_size=14))
    sizes = draw(st.lists(st.integers(1, 2000), min_size=len(spans), max_size=len(spans)))
    return [
        Lifetime(f"v{i}", size, first, first + length)
        for i, ((first, length), size) in enumerate(zip(spans, sizes, strict=True))
    ]


@settings(max_examples=60, deadline=None)
@given(random_lifetimes())
def test_random_plans_are_valid_and_near_the_bound(values: list[Lifetime]) -> None:
    plan = plan_memory(values)
    check_separate(values, plan)
    assert plan.lower_bound == lower_bound(values) <= plan.nbytes
    assert plan.nbytes <= 2 * plan.lower_bound


@pytest.mark.parametrize("make", [residual_net, wide_net], ids=["residual", "wide"])
def test_plans_of_networks(make) -> None:
    values = lifetimes(lower(make()[0], targets.X86_VNNI))
    plan = plan_memory(values)
    check_separate(values, plan)
    assert plan.nbytes < sum(v.nbytes for v in values)
    assert plan.nbytes <= 1.05 * plan.lower_bound


def test_gaps_are_reused() -> None:
    values = [Lifetime("a", 128, 0, 1), Lifetime("b", 64, 1, 2), Lifetime("c", 64, 2, 3)]
    plan = plan_memory(values)
    assert plan.nbytes == plan.lower_bound == 192
    assert plan.offsets["c"] == 0


def test_an_empty_plan() -> None:
    assert plan_memory([]) == MemoryPlan({}, 0, 0)


def chain_net() -> tuple[GraphModule, torch.Tensor]:
    """A table, a sum and a product that can overwrite an operand; one value is read again."""
    net = NetBuilder(3)
    x = torch.randn(1, 16, 9, 9, generator=net.generator)
    q = net.quantize(net.input())
    a = net.conv2d(q, (16, 24), 3, (110, 40), padding=1)
    t = net.call(reference.lookup, a, net.tensor(net.ints(0, 255, (256,), torch.uint8)))
    grid = {"output_zero_point": 40, "qmin": 0, "qmax": 255}
    b = net.conv2d(t, (24, 24), 1, (40, 40))
    s = net.call(reference.add, b, t, zero_points=(40, 40), multipliers=(20000, 21000),
                 shifts=(-7, -7), **grid)  # fmt: skip
    m = net.call(reference.mul, s, b, zero_points=(40, 40), multiplier=20000, shift=2, **grid)
    r = net.call(reference.requantize, m, zero_point=40, multiplier=18000, shift=-7, **grid)
    c = net.conv2d(r, (24, 24), 1, (40, 40), residual=r)
    d = net.conv2d(c, (24, 24), 1, (40, 40), residual=r)
    return net.finish(net.dequantize(d, 40), x), x


def test_values_are_overwritten_by_their_last_reader() -> None:
    program = lower(chain_net()[0], targets.GENERIC)
    values = lifetimes(program)
    assert any(len(v.successors) >= 2 for v in values)
    assert len(overwritten(program)) >= 3
    last = {n: i for i, step in enumerate(program.steps) for n in step.inputs}
    made = {step.output: i for i, step in enumerate(program.steps)}
    for v in values:
        for name, successor in pairwise((v.name, *v.successors)):
            assert last[name] == made[successor]


@pytest.mark.parametrize(
    "target",
    [
        targets.GENERIC,
        targets.X86_AVX2,
        pytest.param(targets.CORTEX_A53, marks=pytest.mark.qemu),
        pytest.param(targets.ARMV7_NEON, marks=pytest.mark.qemu),
    ],
    ids=str,
)
def test_kernels_in_place_are_exact(target: Target, tmp_path) -> None:
    require(target)
    graph, x = chain_net()
    library = export_standalone(lower(graph, target), tmp_path)
    for sample in (x, -3 * x):
        assert np.array_equal(library.run([sample])[0], graph(sample).numpy())
