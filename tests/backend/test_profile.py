"""Looking into compiled networks: the memory map, and a time for every kernel."""

from __future__ import annotations

import pytest
import torch

import fxquant
import tvm_backend
from fxquant import targets
from fxquant.errors import ConfigError, TargetError
from fxquant.inspection import MemoryMap, Profiled, inspect
from tests.backend.integer_nets import residual_net
from tests.inspection.nets import quantized_net
from tvm_backend.devices import host_target
from tvm_backend.lower import lower
from tvm_backend.memory_plan import lifetimes, plan_memory


def test_the_memory_map_is_the_plan() -> None:
    graph, _ = residual_net()
    compiled = tvm_backend.compile(graph, targets.CORTEX_A53)
    assert isinstance(compiled, Profiled)
    program = lower(graph, targets.CORTEX_A53)
    plan = plan_memory(lifetimes(program))
    placed = compiled.memory_map()
    assert {v.name.split(" → ")[0]: v.offset for v in placed} == {
        v.name: plan.offsets[v.name] for v in lifetimes(program)
    }
    memory = MemoryMap.of(placed)
    assert 0 < memory.needed <= memory.nbytes <= plan.nbytes
    for i, a in enumerate(placed):
        for b in placed[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset >= b.offset + b.nbytes or b.offset >= a.offset + a.nbytes
            assert apart or not together


def test_every_step_is_timed_in_order() -> None:
    quantized = quantized_net()
    compiled = tvm_backend.compile(quantized, host_target(), threads=1)
    x = torch.randn(1, 3, 12, 12)
    before = compiled(x)
    timings = compiled.profile(x, rounds=2)
    program = lower(quantized.integer, host_target())
    assert [t.kernel for t in timings] == [step.kernel.name for step in program.steps]
    assert all(t.milliseconds > 0 for t in timings)
    assert torch.equal(compiled(x), before)


def test_the_report_gives_every_layer_its_kernels() -> None:
    quantized = quantized_net()
    compiled = tvm_backend.compile(quantized, host_target(), threads=1)
    found = inspect(quantized, compiled=compiled)
    kernels = [k for layer in found.layers for k in layer.kernels]
    assert len(kernels) == len(lower(quantized.integer, host_target()).steps)
    assert found.memory is not None and found.memory.nbytes > 0
    assert next(layer for layer in found.layers if layer.fact.node == "stem").milliseconds > 0


def test_islands_are_timed_as_a_whole() -> None:
    island = quantized_net(fxquant.W8A8.with_rules(names={"gate.2": None}))
    compiled = tvm_backend.compile(island, host_target(), threads=1)
    timings = compiled.profile(torch.randn(1, 3, 12, 12), rounds=1)
    assert [t.node for t in timings if t.kernel.startswith("float_")] == ["gate_2"]


def test_what_cannot_be_profiled_says_so() -> None:
    quantized = quantized_net()
    compiled = tvm_backend.compile(quantized, host_target(), threads=1)
    with pytest.raises(ConfigError, match="one run of the network"):
        compiled.profile(torch.randn(2, 3, 12, 12))
    with pytest.raises(ConfigError, match="rounds=0"):
        compiled.profile(torch.randn(1, 3, 12, 12), rounds=0)
    foreign = tvm_backend.compile(quantized, targets.CORTEX_A53)
    with pytest.raises(TargetError, match="cannot run code"):
        foreign.profile(torch.randn(1, 3, 12, 12))
