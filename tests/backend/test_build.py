"""compile, call, export and load on the machine itself."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import tvm_backend
from fxquant import targets
from fxquant.errors import ConfigError, FileFormatError, TargetError
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.integer_nets import NetBuilder, residual_net, windows
from tests.backend.kernel_harness import require
from tvm_backend.tvm_api import last_line, relax, tvm

HOSTS = (
    targets.X86_VNNI, targets.X86_AMX, targets.X86_AVX512, targets.X86_AVX_VNNI, targets.X86_AVX2,
    targets.GENERIC,
)  # fmt: skip


@pytest.fixture(scope="module")
def net() -> tuple[GraphModule, Tensor]:
    return residual_net()


@pytest.fixture(scope="module")
def compiled(net: tuple[GraphModule, Tensor]) -> tvm_backend.Compiled:
    return tvm_backend.compile(net[0])


@pytest.mark.parametrize("target", HOSTS, ids=str)
def test_compiled_equals_reference(net: tuple[GraphModule, Tensor], target: Target) -> None:
    require(target)
    graph, x = net
    compiled = tvm_backend.compile(graph, target)
    for sample in (x, x * 10, -x, torch.zeros_like(x)):
        assert torch.equal(compiled(sample), graph(sample))


def wide_net() -> tuple[GraphModule, Tensor]:
    """Every other kind of operator: branches, concat, transposed convolution, resize, views."""
    net = NetBuilder(5)
    x = torch.randn(2, 5, 12, 12, generator=net.generator)
    q = net.quantize(net.input())
    grid = {"output_zero_point": 40, "qmin": 0, "qmax": 255}
    a = net.conv2d(q, (5, 24), 3, (110, 40), padding=1)
    d = net.conv2d(a, (24, 24), 3, (40, 40), padding=1, groups=24)
    g = net.conv2d(a, (24, 24), 3, (40, 40), padding=2, groups=3, dilation=2)
    c = net.call(reference.concat, [d, g], axis=1, zero_points=(40, 40),
                 multipliers=(1 << 14, 20000), shifts=(-7, -7), **grid)  # fmt: skip
    s = net.call(reference.channel_shuffle, c, groups=2)
    t = net.call(reference.lookup, s, net.tensor(net.ints(0, 255, (256,), torch.uint8)))
    left = net.call(reference.slice_axis, t, axis=1, start=0, stop=24, step=1)
    right = net.call(reference.slice_axis, t, axis=1, start=24, stop=48, step=1)
    m = net.tensor(torch.full((1, 1), 21000, dtype=torch.int16))
    whole = ((0, 12, 1),)
    gate = net.call(reference.avg_pool2d, right, m, net.tensor(torch.zeros(1, 1, dtype=torch.int8)),
                    rows=whole, cols=whole, zero_point=40, **grid)  # fmt: skip
    p = net.call(reference.mul, left, gate, zero_points=(40, 40), multiplier=20000, shift=0, **grid)
    u = net.conv2d(p, (24, 8), 4, (40, 40), stride=2, padding=2,
                   function=reference.conv_transpose2d)  # fmt: skip
    n = net.call(reference.local_response_norm, u, size=5, zero_point=40, offset=5e4, factor=3e3,
                 **grid)  # fmt: skip
    r = net.call(reference.pad, n, pads=((0, 0), (0, 0), (1, 0), (-1, 2)), value=40)
    pool = windows(24, 2, 2, 0)
    b = net.call(reference.max_pool2d, r, rows=pool, cols=pool)
    f = net.call(reference.reshape, b, shape=(0, -1))
    logits = net.logits(net.linear_accumulate(f, (8 * 12 * 12, 7), 40), 7)
    return net.finish((logits, [net.dequantize(b, 40)]), x), x


@pytest.mark.parametrize("target", [targets.X86_VNNI, targets.X86_AVX2], ids=str)
def test_a_net_of_all_kinds_of_operators(target: Target) -> None:
    require(target)
    graph, x = wide_net()
    logits, (features,) = tvm_backend.compile(graph, target)(x)
    expected_logits, (expected_features,) = graph(x)
    assert torch.equal(features, expected_features)
    assert torch.equal(logits, expected_logits)
    assert len(features.unique()) > 20


def test_kind_of_arrays_is_kept(compiled: tvm_backend.Compiled, net) -> None:
    graph, x = net
    result = compiled(x.numpy())
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, graph(x).numpy())
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(compiled(strided), graph(x))
    unaligned = torch.zeros(x.numel() + 1)[1:].reshape(x.shape).copy_(x)
    assert torch.equal(compiled(unaligned), graph(x))
    assert np.array_equal(compiled(x.numpy()[..., ::-1]), graph(x.flip(-1)).numpy())


def test_results_survive_the_next_call(compiled: tvm_backend.Compiled, net) -> None:
    x = net[1]
    first = compiled(x)
    kept = first.clone()
    compiled(-x)
    assert torch.equal(first, kept)


def test_multiples_of_the_batch_run_in_slices(compiled: tvm_backend.Compiled, net) -> None:
    graph, x = net
    batch = torch.cat([x, -x, x * 0.5])
    assert torch.equal(compiled(batch), graph(batch))


def test_wrong_inputs_have_clear_errors(compiled: tvm_backend.Compiled, net) -> None:
    x = net[1]
    for inputs, message in (
        ((x, x), "2 inputs given, 1 needed"),
        ((x.double(),), "float64, not float32"),
        ((x[:, :2],), r"compiled for shape \(1, 3, 20, 20\)"),
        ((x[:0],), "multiple of 1"),
        (([1.0],), "is a list"),
        ((x.to_sparse(),), "is sparse"),
        ((x.numpy().astype(">f4"),), "type >f4"),
        ((np.array(["a"]),), "type <U1"),
    ):
        with pytest.raises(ConfigError, match=message):
            compiled(*inputs)
    two = tvm_backend.compile(residual_net(batch=2)[0])
    with pytest.raises(ConfigError, match="multiple of 2"):
        two(x)


def test_threads(net) -> None:
    graph, x = net
    assert torch.equal(tvm_backend.compile(graph, threads=1)(x), graph(x))
    for threads in (0, "1", 1.0, True):
        with pytest.raises(ConfigError, match=f"threads={threads!r}"):
            tvm_backend.compile(graph, threads=threads)  # type: ignore[arg-type]


def test_calls_from_several_threads() -> None:
    graph, x = residual_net(80)  # a call long enough to be met by another one
    compiled = tvm_backend.compile(graph, threads=1)
    inputs = [x * (1 + i) for i in range(4)]
    expected = [graph(sample) for sample in inputs]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(compiled, inputs * 100)
        assert all(map(torch.equal, results, expected * 100))


def test_copies_are_refused(compiled: tvm_backend.Compiled) -> None:
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ConfigError, match="export it"):
            make(compiled)


def test_memory(compiled: tvm_backend.Compiled) -> None:
    memory, signature = compiled.memory, compiled.signature
    assert memory.boundary == sum(s.nbytes for s in (*signature.inputs, *signature.outputs))
    assert memory.weights > 0 and memory.intermediates > 0
    assert memory.peak == memory.weights + memory.intermediates + memory.boundary


def test_export_and_load(compiled: tvm_backend.Compiled, net, tmp_path: Path) -> None:
    graph, x = net
    compiled.export(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["memory_bytes"] > 0
    assert sum(manifest["kernels"].values()) >= 7
    loaded = tvm_backend.load(tmp_path)
    assert torch.equal(loaded(x), graph(x))
    with pytest.raises(ConfigError, match="loaded network"):
        loaded.export(tmp_path / "again")
    with pytest.raises(TargetError, match="loaded network"):
        loaded.run_emulated(x)


def test_a_folder_is_loaded_as_it_is_now(
    compiled: tvm_backend.Compiled, net: tuple[GraphModule, Tensor], tmp_path: Path
) -> None:
    graph, x = net
    first = tvm_backend.load(compiled.export(tmp_path))
    other, _ = residual_net(channels=32)
    second = tvm_backend.load(tvm_backend.compile(other).export(tmp_path))
    assert torch.equal(first(x), graph(x)) and torch.equal(second(x), other(x))


def test_damaged_files_are_refused(compiled: tvm_backend.Compiled, tmp_path: Path) -> None:
    compiled.export(tmp_path)
    manifest, library = tmp_path / "manifest.json", tmp_path / "net.so"
    text, code = manifest.read_text(), library.read_bytes()
    library.write_bytes(code[:-10])
    with pytest.raises(FileFormatError, match="digest"):
        tvm_backend.load(tmp_path)
    library.unlink()
    with pytest.raises(FileFormatError, match="absent"):
        tvm_backend.load(tmp_path)
    library.write_bytes(code)
    newer = text.replace('"format_version": 1', '"format_version": 2')
    broken_shape = text.replace('"shape": [', '"shape": [-1,')
    for content, message in (
        (text[:50], "no JSON"),
        ("[]", "no format version"),
        (newer, "format version 2"),
        (broken_shape, "invalid tensor"),
        ('{"format_version": 1}', "KeyError"),
    ):
        manifest.write_text(content)
        with pytest.raises(FileFormatError, match=message):
            tvm_backend.load(tmp_path)
    with pytest.raises(FileFormatError):
        tvm_backend.load(tmp_path / "nowhere")


def test_targets_are_checked(net) -> None:
    graph = net[0]
    with pytest.raises(TargetError, match="is no target"):
        tvm_backend.compile(graph, "x86")  # type: ignore[arg-type]
    mac = targets.GENERIC.mac
    for llvm, message in (
        ((("mtriple", "bogus-linux"),), "code generator"),
        ((("mtriple", "aarch64-linux-gnu"), ("mcpu", "z80")), "z80"),
    ):
        with pytest.raises(TargetError, match=message):
            tvm_backend.compile(graph, Target("odd", llvm, mac, 128))
    with pytest.raises(ConfigError, match="cannot be compiled"):
        tvm_backend.compile(torch.nn.ReLU())  # type: ignore[arg-type]


def test_foreign_code_is_not_called(net) -> None:
    graph, x = net
    compiled = tvm_backend.compile(graph, targets.ARMV7_NEON)
    with pytest.raises(TargetError, match="run_emulated"):
        compiled(x)


def test_host_target_runs_here() -> None:
    require(tvm_backend.host_target())


def test_an_interrupt_inside_of_tvm_comes_out_as_itself() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tvm.runtime.convert(interrupted)()


def _refuse(*_: object, **__: object) -> None:
    raise tvm.error.InternalError("first line\nno such register")


def test_the_last_line_of_an_error() -> None:
    assert last_line(RuntimeError("a stack\nthe reason\n")) == "the reason"
    assert last_line(RuntimeError()) == "RuntimeError"


def test_what_llvm_refuses_is_a_target_error(
    net: tuple[GraphModule, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relax, "build", _refuse)
    with pytest.raises(TargetError, match=r"code generation for .* failed[^$]*no such register"):
        tvm_backend.compile(net[0])


def test_what_llvm_refuses_in_a_standalone_library_is_a_target_error(
    compiled: tvm_backend.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, generate = tvm.get_global_func, "target.build.llvm"
    monkeypatch.setattr(
        tvm, "get_global_func", lambda name, *a: _refuse if name == generate else find(name, *a)
    )
    with pytest.raises(TargetError, match=r"code generation for .* failed[^$]*no such register"):
        compiled.export(tmp_path / "lib", form="standalone")
