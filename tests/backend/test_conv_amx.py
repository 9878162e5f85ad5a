"""Convolutions and linear layers on the matrix tiles of AMX equal the reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import fxquant
import tvm_backend
from fxquant.errors import TargetError
from fxquant.numerics import reference
from fxquant.targets import GENERIC, X86_AMX, X86_VNNI, Target, idioms
from tests.backend.conv_cases import CASES, RESIDUAL, Case, assert_equal, check, make_numbers
from tests.backend.integer_nets import residual_net
from tests.backend.kernel_harness import from_storage, require, run_kernel, to_storage
from tvm_backend import devices
from tvm_backend.emit.conv_amx import amx_layer
from tvm_backend.emit.linear import linear_accumulate_kernel
from tvm_backend.kernel import Abi
from tvm_backend.layout import image
from tvm_backend.lower import lower
from tvm_backend.macs import tdpbusd
from tvm_backend.schedule.amx import AmxLayer, AmxPlan, plan_amx
from tvm_backend.standalone import export_standalone

DENSE = [
    *(case for case in CASES if case.groups == 1),
    Case("two_chunks", 80, 48, 5, 6, output_halo=(1, 1, 1, 1)),
    Case("padded_steps", 68, 16, 4, 6, kernel=(1, 1), padding=(0, 0, 0, 0)),  # 17 steps are prime
    Case("wide", 16, 32, 3, 70),
    Case("joined_rows", 32, 64, 7, 7, kernel=(1, 1), padding=(0, 0, 0, 0), n=2),
    Case("joined_strides", 32, 80, 14, 14, kernel=(1, 1), stride=(2, 2), padding=(0, 0, 0, 0)),
    Case("uneven_strides", 4, 16, 9, 9, stride=(1, 2)),
    Case("many_blocks", 64, 112, 10, 13, residual=True, output_halo=(1, 1, 1, 1)),
]


def _layer(case: Case) -> AmxLayer:
    layer = amx_layer(case.problem(X86_AMX), X86_AMX)
    assert layer is not None
    return layer


def _kinds(case: Case) -> list[AmxPlan]:
    """The best plan of every kind."""
    found: dict[tuple, AmxPlan] = {}
    for plan in plan_amx(_layer(case)):
        kind = (plan.rows > 1, plan.pitch > 0, plan.tiles, plan.tall, plan.vectors)
        found.setdefault(kind, plan)
    return list(found.values())


def _plans() -> list:
    every = enumerate((case, plan) for case in DENSE for plan in _kinds(case))
    orders = [(c, replace(p, pixels_first=p.pixels_first ^ (i % 2 == 0))) for i, (c, p) in every]
    return [pytest.param(c, p, id=f"{c.name}-{p}") for c, p in orders]


@pytest.mark.parametrize(("case", "plan"), _plans())
def test_every_blocking_equals_the_reference(case: Case, plan: AmxPlan) -> None:
    residual = RESIDUAL if case.residual else None
    kernel = check(case, X86_AMX, make_numbers(case), residual=residual, tile=plan)
    assert "tiles" in kernel.name and kernel.name.endswith("__tdpbusd")


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_nothing_outside_the_buffers_is_touched(case: Case) -> None:
    residual, plan = RESIDUAL if case.residual else None, plan_amx(_layer(case))[0]
    check(case, X86_AMX, make_numbers(case), residual=residual, tile=plan, abi=Abi.BARE)


@pytest.mark.parametrize("case", [c for c in DENSE if c.name != "one_channel"], ids=str)
def test_the_choice_is_exact_and_its_variants_are(case: Case) -> None:
    residual = RESIDUAL if case.residual else None
    kernel = check(case, X86_AMX, make_numbers(case), residual=residual)
    assert kernel.variants is not None
    names = [variant.name for variant in kernel.variants.ranked()]
    assert len(set(names)) == len(names)
    assert {name.rpartition("__")[2] for name in names} == {"tdpbusd", "vpdpbusd_512"}
    assert "tdpbusd" in kernel.variants.problem


def test_residuals_in_place_are_read_before_they_are_overwritten() -> None:
    """The last blocks overlap those before: what is finished must not be finished again."""
    case = next(c for c in DENSE if c.name == "many_blocks")
    plan = next(p for p in plan_amx(_layer(case)) if case.h % p.rows and p.rows > 1)
    assert plan.rows * (case.h // plan.rows) < case.h
    check(case, X86_AMX, make_numbers(case), residual=RESIDUAL, tile=plan)
    net = fxquant.quantize(_Residual().eval(), [torch.randn(8, 16, 10, 13)], progress=False)
    require(X86_AMX)
    compiled = tvm_backend.compile(net, X86_AMX, threads=1)
    x = torch.randn(1, 16, 10, 13)
    assert torch.equal(compiled(x), net(x))


class _Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = (layer(x) + x).relu()
        return x


@pytest.mark.parametrize("shape", [(17, 333, 100), (70, 64, 16), (2, 40, 231, 48)], ids=str)
def test_linear_layers_equal_the_reference(shape: tuple[int, ...]) -> None:
    *rows, k, o = shape
    g = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (*rows, k), generator=g).to(torch.uint8)
    weight = torch.randint(-128, 128, (o, k), generator=g).to(torch.int8)
    bias = torch.randint(-9000, 9001, (o,), generator=g, dtype=torch.int32)
    source, output = image((*rows, k), "uint8"), image((*rows, o), "int32")
    kernel = linear_accumulate_kernel(
        source, output, input_zero_point=77, weight=weight.numpy(), bias=bias.numpy(),
        target=X86_AMX,
    )  # fmt: skip
    assert kernel.name.endswith("__tdpbusd")
    result = run_kernel(kernel, X86_AMX, to_storage(x, source), abi=Abi.BARE)
    expected = reference.linear_accumulate(x, weight, bias, input_zero_point=77)
    assert_equal(from_storage(result, output, (*rows, o)), expected, kernel)


@pytest.mark.parametrize("fault", ["rows", "depth"])
def test_a_wrong_tile_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    require(X86_AMX)
    real = tdpbusd.configuration
    less = {"rows": (1, 0), "depth": (0, 4)}[fault]
    monkeypatch.setattr(
        tdpbusd, "configuration", lambda rows, depth: real(rows - less[0], depth - less[1])
    )
    case = next(c for c in DENSE if c.name == "two_chunks")
    with pytest.raises(AssertionError, match="differ"):
        check(case, X86_AMX, make_numbers(case), tile=plan_amx(_layer(case))[0])


def test_a_network_on_several_threads_equals_the_simulator() -> None:
    require(X86_AMX)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 40, 7, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(40, 96, 3, padding=1),
        torch.nn.ReLU(), torch.nn.Conv2d(96, 200, 1), torch.nn.ReLU(), torch.nn.Conv2d(200, 8, 3),
    )  # fmt: skip
    quantized = fxquant.quantize(net.eval(), [torch.randn(4, 3, 37, 41)], progress=False)
    names = lower(quantized.integer, X86_AMX).kernels
    assert sum("tdpbusd" in name for name in names) == 4
    compiled = tvm_backend.compile(quantized, X86_AMX, threads=2)
    x = torch.randn(3, 3, 37, 41)
    assert torch.equal(compiled(x), quantized(x))


def test_a_standalone_library_asks_for_permission() -> None:
    require(X86_AMX)
    net = torch.nn.Sequential(torch.nn.Conv2d(16, 64, 3, padding=1), torch.nn.ReLU()).eval()
    quantized = fxquant.quantize(net, [torch.randn(4, 16, 12, 12)], progress=False)
    assert any("tdpbusd" in name for name in lower(quantized.integer, X86_AMX).kernels)
    x = torch.randn(1, 16, 12, 12)
    compiled = tvm_backend.compile(quantized, X86_AMX)
    assert torch.equal(compiled.run_emulated(x), quantized(x))  # a program of its own
    tiles, plain = (_init(target) for target in (X86_AMX, X86_VNNI))
    assert "may_use_tiles()" in tiles and "may_use_tiles" not in plain


def _init(target: Target) -> str:
    graph, _ = residual_net()
    with TemporaryDirectory() as folder:
        export_standalone(lower(graph, target), Path(folder))
        return (Path(folder) / "net.c").read_text()


def test_chunks_are_equal_parts_inside_the_pixel() -> None:
    layers = {case.name: _layer(case) for case in DENSE}
    assert (layers["two_chunks"].chunks, layers["two_chunks"].depth) == (4, 60)  # of 3 columns
    assert (layers["padded_steps"].chunks, layers["padded_steps"].depth) == (2, 36)
    assert (layers["stem"].taps, layers["stem"].depth) == (7, 28)  # kernel columns are channels
    assert layers["small_channels"].taps == 3
    for case in DENSE:
        layer = layers[case.name]
        assert layer.depth * layer.chunks == layer.steps * 4 and layer.depth <= 64


def test_blocks_cover_the_output_and_fit_their_tiles() -> None:
    for case in DENSE:
        layer = _layer(case)
        for plan in plan_amx(layer):
            windows, places = plan.windows, plan.places
            assert len(places) == plan.runs * plan.tiles and places[-1][0] == plan.runs - 1
            starts = [start for run, start in places if run == 0]
            assert starts[0] == 0 and starts[-1] + plan.size == windows
            assert all(b - a <= plan.size for a, b in pairwise(starts))
            assert plan.size <= 16 and plan.kept[0] * plan.kept[1] <= len(tdpbusd.SUMS)


def test_few_pixels_are_no_work_for_tiles() -> None:
    case = Case("row", 64, 64, 1, 3, kernel=(1, 1), padding=(0, 0, 0, 0))
    assert plan_amx(_layer(case)) == []


def test_tiles_are_for_dense_layers_of_8_bits() -> None:
    plain = DENSE[0]
    assert amx_layer(plain.problem(X86_VNNI), X86_VNNI) is None
    wide = replace(plain, bits=16)
    assert amx_layer(wide.problem(X86_AMX), X86_AMX) is None
    grouped = replace(plain, c=16, o=64, groups=4)
    assert amx_layer(grouped.problem(X86_AMX), X86_AMX) is None


def test_a_target_must_share_its_idiom_with_its_tiles() -> None:
    with pytest.raises(TargetError, match="beside 'widen'"):
        replace(GENERIC, tiles=idioms.TDPBUSD)


def test_without_permission_the_target_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(X86_AMX.requires))
    monkeypatch.setattr(devices, "_may_use_tiles", lambda: False)
    monkeypatch.setattr(devices, "same_architecture", lambda target: target.is_x86)
    assert devices.missing_features(X86_AMX) == (
        "the operating system's permission to use AMX tiles",
    )
    assert devices.host_target() is X86_VNNI
    monkeypatch.setattr(devices, "_may_use_tiles", lambda: True)
    assert devices.host_target() is X86_AMX
