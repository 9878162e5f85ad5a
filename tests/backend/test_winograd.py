"""Winograd kernels equal the reference operators; the conditions for it are exact bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

import tvm_backend
from fxquant.errors import UnsupportedError
from fxquant.numerics import reference
from fxquant.targets import (
    CORTEX_A53,
    CORTEX_A55,
    GENERIC,
    NEOVERSE_V1,
    X86_AVX2,
    X86_AVX_VNNI,
    X86_VNNI,
    X86_ZEN1,
    Target,
)
from tests.backend.conv_cases import (
    RESIDUAL,
    Case,
    Numbers,
    assert_equal,
    check,
    conv_kernel,
    make_numbers,
    winograd_cases,
    winograd_plan,
)
from tests.backend.integer_nets import residual_net
from tests.backend.kernel_harness import (
    from_storage,
    largest_loop,
    require,
    run_kernel,
    to_storage,
    undefined_symbols,
)
from tvm_backend.devices import missing_features
from tvm_backend.emit.conv import conv2d_accumulate_kernel, conv2d_kernel
from tvm_backend.kernel import Abi
from tvm_backend.layout import INPUT_CHANNEL_MULTIPLE, NO_HALO
from tvm_backend.lower import lower
from tvm_backend.memory_plan import lifetimes, plan_memory
from tvm_backend.standalone import export_standalone
from tvm_backend.threads import check_threads, use_threads
from tvm_backend.tvm_api import tirx
from tvm_backend.winograd import F2, F3, F4, SIZES, Winograd, both_axes

M = [pytest.param(w, id=f"F{w.m}") for w in SIZES]
M_3X3 = [pytest.param(w, id=f"F{w.m}") for w in SIZES if w.window == 3]


def _nothing(value: np.ndarray) -> np.ndarray:
    return value


@pytest.mark.parametrize("size", M)
def test_lines_are_the_matrices(size: Winograd) -> None:
    unit = list(np.eye(size.size, dtype=np.int64))
    assert (np.array(size.input_line(unit, _nothing)) == size.inputs).all()
    assert (np.array(size.output_line(unit, _nothing)) == size.outputs).all()


@pytest.mark.parametrize("size", M)
def test_transforms_keep_the_type(size: Winograd) -> None:
    """int16 vectors that became int32 ones on the way would take twice the instructions."""
    for dtype, line, count in (
        ("int16x16", size.input_line, size.size),
        ("uint32x8", size.output_line, size.size),
    ):
        values = line([tirx.Var(f"x{i}", dtype) for i in range(count)], _nothing)
        assert {str(value.ty.dtype) for value in values} == {dtype}


def _accumulate(size: Winograd, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The kernel's arithmetic on one tile: x `[C, size, size]`, w `[C, r, r]` -> `[m, m]`."""
    grid = x.astype(np.int16).transpose(1, 2, 0)
    v = np.array(both_axes(size.input_line, grid, _nothing)).reshape(-1, len(x))
    u = size.transformed(w.reshape(len(w), -1)).astype(np.int16).T
    products = (v.astype(np.int64) * u).astype(np.uint32)  # each fits int32; sums wrap
    m = products.sum(1, dtype=np.uint32).reshape(size.size, size.size, 1)
    y = np.array(both_axes(size.output_line, m, _nothing))[..., 0] * np.uint32(size.inverse)
    return y.astype(np.int32) >> size.shift


def _direct(size: Winograd, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    out = np.zeros((size.m, size.m), np.int64)
    for i in range(size.window):
        for j in range(size.window):
            window = x[:, i : i + size.m, j : j + size.m].astype(np.int64)
            out += (window * w[:, i, j, None, None]).sum(0)
    return out


RANGES = [(0, 255), (0, 127), (-128, 127)]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(SIZES), st.sampled_from(RANGES), st.integers(1, 40),
    st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 1 << 30),
)  # fmt: skip
def test_arithmetic_is_exact(
    size: Winograd, bounds: tuple[int, int], channels: int, extreme: float, seed: int
) -> None:
    """Random codes, and ones that are all bounds of their range."""
    rng = np.random.default_rng(seed)

    def codes(low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.integers(low, high + 1, shape)
        return np.where(rng.random(shape) < extreme, rng.choice([low, high], shape), values)

    x = codes(*bounds, (channels, size.size, size.size))
    least = -127 if size is F3 else -128  # 16 * 16 * 128 is beyond int16
    w = codes(least, 127, (channels, size.window, size.window))
    assert size.is_exact(w[None], *bounds)
    assert (_accumulate(size, x, w) == _direct(size, x, w)).all()


def _large(size: Winograd, above: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs 255 and weights whose accumulators are the largest possible, or just above."""
    limit, taps = 1 << (31 - size.shift), size.window**2
    channels = limit // (taps * 127 * 255) + 1
    w = np.full((channels, size.window, size.window), 127)
    excess = taps * 127 * channels - (limit - 1) // 255 - above
    w.reshape(-1)[: excess // 127] = 0
    w.reshape(-1)[-1] -= excess % 127
    return np.full((channels, size.size, size.size), 255), w


@pytest.mark.parametrize("size", M)
def test_the_bound_on_accumulators_is_sharp(size: Winograd) -> None:
    for sign in (1, -1):
        x, w = _large(size, 0)
        assert size.is_exact(sign * w[None], 0, 255)
        assert (_accumulate(size, x, sign * w) == _direct(size, x, sign * w)).all()
    x, w = _large(size, 1)
    assert not size.is_exact(w[None], 0, 255)
    assert (_accumulate(size, x, w) != _direct(size, x, w)).all()


def test_operands_beyond_int16_are_not_exact() -> None:
    ones = np.ones((1, 1, 3, 3), np.int8)
    assert F2.is_exact(ones, 0, 255) and F4.is_exact(ones, 0, 255)
    assert F4.is_exact(ones, 0, 32767 // 68) and not F4.is_exact(ones, 0, 32767 // 68 + 1)
    assert not F4.is_exact(np.full((1, 1, 3, 3), 32768 // 49 + 1), 0, 1)
    assert F3.is_exact(np.full((1, 1, 4, 4), 127), 0, 255)
    assert not F3.is_exact(np.full((1, 1, 4, 4), 128), 0, 1)  # 16 * 16 * 128


CASES = [
    Case("odd", 17, 33, 5, 7, n=2, output_halo=(1, 2, 0, 3)),
    Case("even", 16, 64, 8, 8, clip=(120, 200)),
    Case("no_padding", 31, 15, 6, 9, padding=(0, 0, 0, 0), input_zero_point=255),
    Case("one_pixel", 8, 48, 1, 1),
    Case("small_input", 3, 31, 13, 5, multiple=INPUT_CHANNEL_MULTIPLE, input_zero_point=0),
    Case("seven", 40, 24, 7, 7, n=3, extra_halo=1, output_halo=(1, 1, 1, 1)),
    Case("one_sided", 15, 47, 4, 6, padding=(0, 2, 1, 0)),
    Case("crop", 16, 16, 9, 8, padding=(-1, 1, 1, -2)),
    Case("residual", 33, 96, 4, 5, residual=True, n=2, output_halo=(0, 1, 1, 0)),
]


@pytest.mark.parametrize("size", M_3X3)
@pytest.mark.parametrize(("target", "case"), winograd_cases(CASES, ("odd", "residual")))
def test_kernels_equal_reference(target: Target, case: Case, size: Winograd) -> None:
    """On the host with guard pages behind every buffer, the workspace included."""
    residual = RESIDUAL if case.residual else None
    plan = winograd_plan(case, target, size)
    kernel = check(case, target, make_numbers(case), residual=residual, abi=Abi.BARE, tile=plan)
    assert "winograd" in kernel.name


@pytest.mark.parametrize("spread", [True, False], ids=["tiles", "channels"])
@pytest.mark.parametrize("tiles", [1, 4, 5])
def test_every_blocking_gives_the_same_result(tiles: int, spread: bool) -> None:
    """More and fewer tiles than a register tile, a partial last block, both ways to use threads."""
    case = Case("blocking", 20, 72, 7, 9, n=2, output_halo=(1, 1, 1, 1))
    plan = replace(winograd_plan(case, X86_AVX2, F4), tiles=tiles, group=3, spread_tiles=spread)
    check(case, X86_AVX2, make_numbers(case), tile=plan)


def test_accumulators_equal_reference() -> None:
    case = CASES[0]
    n, problem = make_numbers(case), case.problem(X86_AVX2)
    problem = replace(problem, output=replace(problem.output, dtype="int32", halo=NO_HALO))
    kernel = conv2d_accumulate_kernel(
        problem, weight=n.weight.numpy(), bias=n.bias.numpy(), target=X86_AVX2,
        tile=winograd_plan(case, X86_AVX2, F4),
    )  # fmt: skip
    x = to_storage(n.x, problem.source, case.input_zero_point)
    result = run_kernel(kernel, X86_AVX2, x, abi=Abi.BARE)
    got = from_storage(result, problem.output, case.output_shape)
    assert_equal(got, reference.conv2d_accumulate(n.x, n.weight, n.bias, **case.window()), kernel)


FAULTS = {
    "inverse": {"odd": 7},
    "shift": {"shift": 5},
    "input_transform": {"input_line": lambda x, bind: F4.input_line(x[::-1], bind)},
    "weight_transform": {"weights": F4.weights[[0, 2, 1, 3, 4, 5]]},
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str) -> None:
    case = CASES[0]
    numbers, plan = make_numbers(case), winograd_plan(case, X86_AVX2, F4)
    check(case, X86_AVX2, numbers, tile=plan)
    wrong = replace(plan, size=replace(F4, **FAULTS[name]), group=len(name))  # a name of its own
    with pytest.raises(AssertionError, match="differ"):
        check(case, X86_AVX2, numbers, tile=wrong)


BEYOND = Case("beyond", 120, 8, 4, 4, output_halo=(0, 0, 0, 0), input_zero_point=0)


def _beyond() -> Numbers:
    """Accumulators of 120 * 9 * 127 * 255 = 2^25.06: more than F(4x4, 3x3) can tell apart."""
    numbers = make_numbers(BEYOND)
    one = torch.full_like
    return replace(
        numbers, x=one(numbers.x, 255), weight=one(numbers.weight, 127), bias=0 * numbers.bias,
        multiplier=one(numbers.multiplier, 1 << 14), shift=one(numbers.shift, 10),
    )  # fmt: skip


def test_a_violated_bound_is_an_error_and_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = winograd_plan(BEYOND, X86_AVX2, F4)
    check(BEYOND, X86_AVX2, _beyond(), tile=winograd_plan(BEYOND, X86_AVX2, F2))
    with pytest.raises(UnsupportedError, match="not exact"):
        check(BEYOND, X86_AVX2, _beyond(), tile=plan)
    monkeypatch.setattr(Winograd, "is_exact", lambda *_: True)
    with pytest.raises(AssertionError, match="differ"):
        check(BEYOND, X86_AVX2, _beyond(), tile=plan)


def _chosen(case: Case, target: Target, numbers: Numbers, **options: bool) -> str:
    kernel = conv2d_kernel(
        case.problem(target), weight=numbers.weight.numpy(), bias=numbers.bias.numpy(),
        multiplier=numbers.multiplier.numpy(), shift=numbers.shift.numpy(), target=target,
        **options,
    )  # fmt: skip
    return kernel.name


def _only_weights(case: Case, limit: int = 80) -> Numbers:
    """Random weights; the rest does not matter for the choice."""
    numbers = make_numbers(replace(case, c=case.groups, h=5, w=5))
    shape = (case.o, case.c // case.groups, *case.kernel)
    weight = torch.randint(-limit, limit + 1, shape, generator=torch.Generator().manual_seed(0))
    return replace(numbers, weight=weight.to(torch.int8))


LAYERS = {c: Case(f"layer_{c}", c, c, hw, hw) for c, hw in ((64, 56), (128, 28))}


def test_the_cost_model_chooses() -> None:
    for case in LAYERS.values():
        numbers = _only_weights(case)
        assert "winograd" in _chosen(case, X86_AVX2, numbers)
        assert "winograd" not in _chosen(case, X86_AVX2, numbers, winograd=False)
        for target in (CORTEX_A55, NEOVERSE_V1):  # dot products
            assert "winograd" not in _chosen(case, target, numbers)
        for target in (X86_VNNI, X86_AVX_VNNI):  # of words, too
            assert "_f4b" in _chosen(case, target, numbers)
    late = Case("late", 512, 512, 7, 7)  # 19 MB of transformed weights for 4 tiles
    assert "_f4b" not in _chosen(late, X86_AVX2, _only_weights(late))
    for limit in (80, 40):  # products are slower than reading the weights, those of 7 bits too
        assert "_f4b" in _chosen(late, X86_ZEN1, _only_weights(late, limit))


@pytest.mark.parametrize(
    ("target", "product", "without"),
    [
        pytest.param(X86_VNNI, "vpdpwssd", "vpmaddwd", id="x86_vnni"),
        pytest.param(CORTEX_A53, "smlal", "ld1r", id="cortex_a53"),
    ],
)
def test_a_product_is_one_instruction(target: Target, product: str, without: str) -> None:
    """Nor are operands spilled."""
    case = LAYERS[64]
    kernel = conv_kernel(case, target, _only_weights(case), tile=winograd_plan(case, target, F4))
    loop = largest_loop(kernel, target, product)
    assert loop.count(f"\t{product}\t") >= 32
    assert without not in loop and "(%rsp)" not in loop and "[sp" not in loop


def test_a_batch_gets_the_kernels_of_one_image() -> None:
    """All kinds of kernels are compared for the same number of images."""
    for case in LAYERS.values():
        one, four = (_chosen(replace(case, n=n), X86_AVX2, _only_weights(case)) for n in (1, 4))
        assert "winograd" in one and "winograd" in four
    pointwise = Case("pointwise", 256, 64, 56, 56, kernel=(1, 1), padding=(0, 0, 0, 0))
    idioms = {
        _chosen(replace(pointwise, n=n), X86_AVX2, _only_weights(pointwise)).split("__")[-1]
        for n in (1, 4)
    }
    assert len(idioms) == 1, idioms


def test_what_is_not_eligible_is_computed_directly() -> None:
    numbers = _only_weights(LAYERS[128])
    largest = replace(numbers, weight=torch.full_like(numbers.weight, 127))
    assert "_f4b" in _chosen(LAYERS[128], X86_AVX2, numbers)
    assert "_f4b" not in _chosen(LAYERS[128], X86_AVX2, largest)
    for changes in ({"stride": (2, 2)}, {"dilation": (2, 2)}, {"groups": 2}, {"bits": 16}):
        case = replace(LAYERS[64], **changes)
        assert "winograd" not in _chosen(case, X86_AVX2, _only_weights(case))


def test_bare_kernels_need_no_library() -> None:
    case = CASES[0]
    kernel = check(case, X86_AVX2, make_numbers(case), tile=winograd_plan(case, X86_AVX2, F4))
    assert undefined_symbols(kernel, X86_AVX2) == []


def _block() -> tuple[GraphModule, Tensor]:
    """Stem, pooling and a residual block of ResNet-18's first stage, on fewer pixels."""
    return residual_net(size=48, channels=64)


def test_a_residual_block_chooses_it() -> None:
    graph, x = _block()
    compiled = tvm_backend.compile(graph, X86_AVX2, threads=1)
    assert sum("winograd" in name for name in compiled.summary.kernels) == 2
    direct = tvm_backend.compile(graph, X86_AVX2, winograd=False)
    assert not any("winograd" in name for name in direct.summary.kernels)
    assert direct.memory.weights < compiled.memory.weights
    assert direct.memory.intermediates < compiled.memory.intermediates  # the workspace
    if missing_features(X86_AVX2):
        pytest.skip("this machine has no AVX2")
    assert torch.equal(compiled(x), graph(x))


@pytest.mark.parametrize(
    "target", [GENERIC, pytest.param(CORTEX_A53, marks=pytest.mark.qemu)], ids=str
)
def test_standalone_libraries_have_a_workspace(target: Target, tmp_path: Path) -> None:
    require(target)
    graph, x = _block()
    program = lower(graph, target)
    assert sum("winograd" in name for name in program.kernels) == 2
    library = export_standalone(program, tmp_path)
    assert np.array_equal(library.run([x])[0], graph(x).numpy())
    direct = plan_memory(lifetimes(lower(graph, target, winograd=False)))
    assert library.plan.nbytes > direct.nbytes
    layers = json.loads((tmp_path / "manifest.json").read_text())["weights"]["layers"]
    assert [layer["bits"] for layer in layers].count(16) == 2


def test_two_threads_get_equal_shares() -> None:
    """196 tiles: 7 blocks of 28 would leave one thread idle for a seventh of the time."""
    for target in (X86_AVX2, X86_ZEN1, X86_VNNI):
        plan = winograd_plan(LAYERS[64], target, F4)
        assert plan.spread_tiles and -(-196 // plan.tiles) % 2 == 0


@pytest.mark.parametrize("spread", [True, False], ids=["tiles", "channels"])
def test_threads_share_the_work(spread: bool) -> None:
    """Every thread has sums of its own; with few blocks of tiles they share the inputs."""
    case = Case("threads", 16, 80, 13, 11)
    plan = replace(winograd_plan(case, X86_AVX2, F4), tiles=3, spread_tiles=spread)
    use_threads(min(2, check_threads(None)))
    try:
        for seed in range(3):
            check(case, X86_AVX2, make_numbers(case, seed), tile=plan)
    finally:
        use_threads(1)
