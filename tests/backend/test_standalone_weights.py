"""Weights of a standalone library: packed at their width, widened exactly; sizes of the result."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

import tvm_backend
from fxquant import targets
from fxquant.errors import FileFormatError, TargetError
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.integer_nets import NetBuilder
from tests.backend.kernel_harness import require
from tvm_backend.emit.conv_weights import code_bits
from tvm_backend.lower import lower
from tvm_backend.standalone import bit_packing, export_standalone, section_sizes
from tvm_backend.standalone.objects import compile_functions
from tvm_backend.standalone.weights import lay_out


@pytest.fixture(scope="module")
def widen(tmp_path_factory) -> ctypes.CDLL:
    """The widening functions of all widths, for this machine."""
    folder = tmp_path_factory.mktemp("widen")
    functions = {f"widen{bits}": bit_packing.widen_function(bits) for bits in bit_packing.WIDTHS}
    compile_functions(functions, targets.GENERIC).write_to_file(str(folder / "widen.o"), "o")
    library = folder / "widen.so"
    subprocess.run(["cc", "-shared", "-o", library, folder / "widen.o"], check=True)
    return ctypes.CDLL(str(library))


def widened(library: ctypes.CDLL, packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    blocks = -(-count // bit_packing.BLOCK)
    codes = np.full(blocks * bit_packing.BLOCK, 99, np.int8)
    library[f"widen{bits}"](
        packed.ctypes.data_as(ctypes.c_void_p), blocks, codes.ctypes.data_as(ctypes.c_void_p)
    )
    assert not codes[count:].any()
    return codes[:count]


@pytest.mark.parametrize("bits", bit_packing.WIDTHS)
def test_every_code_survives(widen: ctypes.CDLL, bits: int) -> None:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    for count in (1, 127, 128, 1000):
        codes = np.resize(np.arange(low, high), count).astype(np.int8)
        codes = np.random.default_rng(count).permutation(codes)
        packed = bit_packing.pack(codes, bits)
        assert packed.size == bit_packing.packed_bytes(count, bits)
        assert packed.size * 8 == -(-count // 128) * 128 * bits
        assert np.array_equal(widened(widen, packed, bits, count), codes)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.data())
def test_random_codes_survive(widen: ctypes.CDLL, bits: int, data: st.DataObject) -> None:
    code = st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    codes = np.array(data.draw(st.lists(code, min_size=1, max_size=300)), np.int8)
    assert code_bits(codes) <= bits
    assert np.array_equal(widened(widen, bit_packing.pack(codes, bits), bits, codes.size), codes)


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 2), (-1, 1, 2), (-2, 1, 2), (-1, 2, 3), (-3, 3, 3), (-7, 7, 4), (-8, 7, 4),
     (-9, 0, 5), (-63, 63, 7), (-65, 0, 8), (-128, 127, 8)],
)  # fmt: skip
def test_width_of_codes(low: int, high: int, bits: int) -> None:
    assert code_bits(np.array([low, high], np.int8)) == bits


def low_bit_net(channels: int = 24) -> tuple[GraphModule, Tensor]:
    """One convolution of each weight width from 2 to 8 bits."""
    net = NetBuilder(11)
    x = torch.randn(1, channels, 6, 6, generator=net.generator)
    value = net.quantize(net.input(), 40)
    for bits in range(2, 9):
        value = net.conv2d(value, (channels, channels), 3, (40, 40), padding=1)
        high = (1 << (bits - 1)) - 1
        weight = net.ints(-high, high, (channels, channels, 3, 3), torch.int8)
        weight.view(-1)[0] = high
        node = value.args[1]
        setattr(net.root, node.target, weight)
        shift = net.root.get_buffer(value.args[4].target)
        shift.add_(bits - 8)
    return net.finish(net.dequantize(value, 40), x), x


@pytest.mark.parametrize(
    "target",
    [
        targets.GENERIC,
        pytest.param(targets.CORTEX_A55, marks=pytest.mark.qemu),
        pytest.param(targets.ARMV7_NEON, marks=pytest.mark.qemu),
    ],
    ids=str,
)
def test_networks_of_every_width(target: Target, tmp_path: Path) -> None:
    require(target)
    graph, x = low_bit_net()
    expected = graph(x)
    assert len(expected.unique()) > 20
    library = export_standalone(lower(graph, target, winograd=False), tmp_path)
    assert np.array_equal(library.run([x])[0], expected.numpy())
    layers = json.loads((tmp_path / "manifest.json").read_text())["weights"]["layers"]
    assert [layer["bits"] for layer in layers] == [2, 3, 4, 5, 6, 7, 8]
    for layer in layers:
        assert layer["codes"] == 24 * 24 * 9
        assert layer["kernel_codes"] <= 1.5 * layer["codes"]
        assert layer["nbytes"] <= layer["kernel_codes"] * layer["bits"] / 8 + 16 * layer["bits"]


def test_eight_bit_weights_need_no_scratch() -> None:
    weights = lay_out(lower(low_bit_net()[0], targets.GENERIC, winograd=False))
    assert sorted(weights.scratch_bytes()) == [1, 2, 3, 4, 5, 6]
    assert weights.widths == [2, 3, 4, 5, 6, 7]


def classifier(bits: int) -> tuple[GraphModule, Tensor]:
    """A linear layer whose weights are larger than a cache."""
    net = NetBuilder(3)
    x = torch.randn(1, 1040, 1, 1, generator=net.generator)
    flat = net.call(reference.reshape, net.quantize(net.input(), 40), shape=(0, -1))
    layer = net.linear_accumulate(flat, (1040, 520), 40)
    half = 1 << (bits - 1)
    weight = net.ints(-half, half - 1, (520, 1040), torch.int8)
    setattr(net.root, layer.args[1].target, weight)
    return net.finish(net.logits(layer, 520), x), x


@pytest.mark.parametrize(
    "target",
    [targets.X86_AVX2, pytest.param(targets.CORTEX_A55, marks=pytest.mark.qemu)],
    ids=str,
)
def test_weights_unpacked_in_the_kernel_need_no_scratch(target: Target, tmp_path: Path) -> None:
    """Half the bytes in the file, nothing in the arena, the same numbers; here and as a `.so`."""
    require(target)
    graph, x = classifier(4)
    library = export_standalone(lower(graph, target), tmp_path)
    assert np.array_equal(library.run([x])[0], graph(x).numpy())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (layer,) = manifest["weights"]["layers"]
    assert layer["bits"] == 4 and layer["codes"] == 1040 * 520
    assert layer["kernel_codes"] <= 1.1 * layer["codes"]
    assert layer["nbytes"] == layer["kernel_codes"] // 2
    assert manifest["memory"]["arena_bytes"] < 16384
    if not target.emulator:
        compiled = tvm_backend.compile(graph, target)
        assert torch.equal(compiled(x), graph(x))
        compiled.export(tmp_path / "shared")
        assert torch.equal(tvm_backend.load(tmp_path / "shared")(x), graph(x))


def test_five_bit_weights_are_widened_before_the_kernel() -> None:
    weights = lay_out(lower(classifier(5)[0], targets.X86_AVX2))
    assert weights.widths == [5] and max(weights.scratch_bytes().values()) >= 1040 * 520


def test_equal_constants_are_stored_once() -> None:
    program = lower(low_bit_net()[0], targets.GENERIC, winograd=False)
    total = sum(a.nbytes for step in program.steps for a in step.kernel.constants)
    assert lay_out(program).data.size < total


@pytest.mark.parametrize(
    "target",
    [targets.GENERIC, pytest.param(targets.CORTEX_A55, marks=pytest.mark.qemu)],
    ids=str,
)
def test_sizes_agree_with_binutils(target: Target, tmp_path: Path) -> None:
    require(target)
    export_standalone(lower(low_bit_net()[0], target, winograd=False), tmp_path, shared=True)
    tool = target.compiler.replace("gcc", "size") if target.compiler else "size"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for file in ("net.o", "net.a", "net.so"):
        sizes = section_sizes(tmp_path / file)
        table = subprocess.run(
            [tool, "-G", tmp_path / file], capture_output=True, text=True, check=True
        ).stdout.splitlines()[1]
        text, data, bss = (int(part) for part in table.split()[:3])
        counted = sizes.text + sizes.rodata + sizes.data
        assert counted == text + data or file == "net.so"
        assert sizes.bss == bss
        assert manifest["sections"][file]["text"] == sizes.text
        assert sizes.file == (tmp_path / file).stat().st_size
        assert sizes.rodata >= manifest["weights"]["bytes"]
    library = section_sizes(tmp_path / "net.o")
    assert library.data == library.bss == 0, "the library has state of its own"


def test_sizes_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.o"
    for content, error in (
        (b"", TargetError), (b"MZ" * 40, TargetError),
        (b"\x7fELF\x02\x02" + bytes(60), TargetError),
        (b"\x7fELF\x02\x01" + b"\xff" * 60, FileFormatError),
        (b"\x7fELF\x02\x01", FileFormatError),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(error):
            section_sizes(path)
