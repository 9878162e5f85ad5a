"""Whole networks with 16-bit activations: compiled == reference, bit for bit."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import tvm_backend
from fxquant.model import Quantized
from fxquant.numerics import reference
from fxquant.targets import ARMV7_NEON, CORTEX_A53, GENERIC, X86_AVX2, X86_VNNI, Target
from tests.backend.integer_nets import NetBuilder
from tests.backend.kernel_harness import require
from tests.graphs import quantize_model, tensors
from tests.tolerance import assert_same
from tests.wide_nets import CONFIGS
from tvm_backend.lower import lower
from tvm_backend.memory_plan import lifetimes

CORE = ("residual W8A16", "inverted_bottleneck W2A16", "16-bit operand of an 8-bit sum",
        "8-bit layers between 16-bit ones", "lrn preset W4A16")  # fmt: skip


def _cases() -> list:
    """Each network on AVX2; a few on the other targets, all of them in the slow run."""
    cases = []
    for target in (X86_AVX2, X86_VNNI, GENERIC, CORTEX_A53, ARMV7_NEON):
        for name in CONFIGS:
            marks = [pytest.mark.qemu] if target.emulator else []
            if target is not X86_AVX2 and name not in CORE[:3]:
                marks.append(pytest.mark.slow)
            cases.append(pytest.param(target, name, marks=marks, id=f"{target}-{name}"))
    return cases


@cache
def quantized(name: str) -> Quantized:
    entry, config = CONFIGS[name]
    return quantize_model(entry.make(), entry.inputs(batch=8), config)


@pytest.mark.isa
@pytest.mark.parametrize(("target", "name"), _cases())
def test_compiled_equals_reference(target: Target, name: str) -> None:
    require(target)
    network, entry = quantized(name), CONFIGS[name][0]
    compiled = tvm_backend.compile(network, target)
    run = compiled.run_emulated if target.emulator else compiled
    for inputs in (entry.inputs(batch=2), tuple(3 * x for x in entry.inputs(seed=9, batch=2))):
        pairs = zip(tensors(run(*inputs)), tensors(network.reference(*inputs)), strict=True)
        for i, (actual, expected) in enumerate(pairs):
            assert_same(actual, expected, f"output {i}")


def wide_io_net() -> tuple[torch.fx.GraphModule, Tensor]:
    """uint16 codes in and out, and int64 accumulators out."""
    net = NetBuilder(3)
    x = net.ints(0, 65535, (2, 3, 6, 7), torch.uint16)
    weight = net.tensor(net.ints(-127, 127, (17, 3, 3, 3), torch.int8))
    bias = net.tensor(net.ints(-(1 << 33), 1 << 33, (17,), torch.int64))
    multiplier = net.tensor(net.ints(1 << 30, (1 << 31) - 1, (17,), torch.int32))
    shift = net.tensor(net.ints(1, 4, (17,), torch.int8))
    window = {"stride": (1, 1), "padding": (1,) * 4, "dilation": (1, 1), "groups": 1,
              "input_zero_point": 30000}  # fmt: skip
    grid = {"output_zero_point": 20000, "qmin": 0, "qmax": 65535, "width": 16}
    codes = net.input()
    y = net.call(reference.conv2d, codes, weight, bias, multiplier, shift, **window, **grid)
    acc = net.call(reference.conv2d_accumulate, codes, weight, bias, **window)
    flat = net.call(reference.reshape, y, shape=(2, 17, 6, 7, 1))
    return net.finish({"codes": y, "rest": [acc, codes, flat]}, x), x


@pytest.mark.parametrize("target", [GENERIC, X86_AVX2], ids=str)
def test_codes_and_accumulators_at_the_edges(target: Target) -> None:
    require(target)
    graph, x = wide_io_net()
    compiled = tvm_backend.compile(graph, target)
    for run in (compiled, compiled.run_emulated):
        actual, expected = tensors(run(x)), tensors(graph(x))
        assert [t.dtype for t in actual] == [torch.uint16, torch.int64, torch.uint16, torch.uint16]
        assert all(map(torch.equal, actual, expected))
    as_arrays = compiled(x.numpy())
    assert torch.equal(torch.from_numpy(as_arrays["codes"]), tensors(graph(x))[0])


def test_signature_survives_export(tmp_path) -> None:
    graph, x = wide_io_net()
    loaded = tvm_backend.load(tvm_backend.compile(graph, GENERIC).export(tmp_path))
    assert [spec.dtype for spec in loaded.signature.inputs] == ["uint16"]
    assert all(map(torch.equal, tensors(loaded(x)), tensors(graph(x))))


def test_memory_plan_counts_bytes() -> None:
    """A 16-bit value takes twice the bytes of an 8-bit one."""
    plans = [
        {v.name: v.nbytes for v in lifetimes(lower(quantized(name).integer, GENERIC))}
        for name in ("residual W8A16", "16-bit operand of an 8-bit sum")
    ]
    wide, mixed = plans
    assert wide["a_0"] == 2 * mixed["a_0"]
    assert wide["stem_0"] == mixed["stem_0"]


def test_stored_types_follow_the_grids() -> None:
    """Codes of 16 bits are int16 on every target; the target's choice holds for 8 bits."""
    for target in (X86_VNNI, CORTEX_A53):
        values = lower(quantized("16-bit operand of an 8-bit sum").integer, target).values
        assert values["stem_0"].storage.dtype == "int16"
        assert values["a_0"].storage.dtype == target.mac.storage
        assert values["stem_0"].fill is None or -(1 << 15) <= values["stem_0"].fill < 1 << 15
