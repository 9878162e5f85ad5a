"""Standalone libraries: no TVM, run natively and under qemu; what export writes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

import tvm_backend
from fxquant import targets
from fxquant.errors import ConfigError, FileFormatError, TargetError, UnsupportedError
from fxquant.numerics import reference
from fxquant.targets import Target
from tests.backend.integer_nets import NetBuilder, residual_net
from tests.backend.kernel_harness import require
from tests.backend.test_build import wide_net
from tvm_backend.lower import lower
from tvm_backend.standalone import export_standalone

EACH = (
    targets.X86_VNNI,
    targets.X86_AMX,
    *(pytest.param(t, marks=pytest.mark.qemu) for t in (targets.CORTEX_A53, targets.ARMV7_NEON)),
    *(
        pytest.param(t, marks=[pytest.mark.qemu, pytest.mark.slow])
        for t in (targets.CORTEX_A55, targets.NEOVERSE_V1)
    ),
)
RISCV64 = Target(
    "riscv64",
    (
        ("mtriple", "riscv64-linux-gnu"),
        ("mattr", ("+m", "+a", "+f", "+d", "+c")),
        ("mabi", "lp64d"),
    ),
    targets.GENERIC.mac,
    128,
)


@pytest.mark.parametrize("target", EACH, ids=str)
def test_program_equals_reference(target: Target) -> None:
    require(target)
    graph, x = residual_net()
    compiled = tvm_backend.compile(graph, target)
    batch = torch.cat([x, -x])
    assert torch.equal(compiled.run_emulated(batch), graph(batch))


@pytest.mark.parametrize("target", EACH, ids=str)
def test_program_of_all_kinds_of_operators(target: Target) -> None:
    require(target)
    graph, x = wide_net()
    logits, (features,) = tvm_backend.compile(graph, target).run_emulated(x)
    expected_logits, (expected_features,) = graph(x)
    assert torch.equal(features, expected_features)
    assert torch.equal(logits, expected_logits)


@pytest.mark.parametrize("target", EACH, ids=str)
def test_libraries_need_nothing_but_libc(target: Target, tmp_path: Path) -> None:
    require(target)
    export_standalone(lower(residual_net()[0], target), tmp_path, shared=True)
    tool = target.compiler.replace("gcc", "nm") if target.compiler else "nm"
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")

    def symbols(*arguments: str) -> set[str]:
        done = subprocess.run(
            [tool, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        rows = (line.split() for line in done.stdout.splitlines())
        return {row[-1].split("@")[0] for row in rows if len(row) > 1}

    for file in ("objects/kernels.o", "net.o", "net.a"):
        needed = symbols("-u", file) - {"_GLOBAL_OFFSET_TABLE_"}  # of position-independent code
        assert needed <= {"memset", "memcpy", "memmove"}
    assert symbols("-D", "-u", "net.so") <= {"memset", "memcpy", "memmove"}
    assert all(name.startswith("net_") for name in symbols("-g", "--defined-only", "net.o"))
    exported = symbols("-D", "--defined-only", "net.so")
    assert len(exported) == 10 and all(name.startswith("net_") for name in exported)


def io_net() -> tuple[GraphModule, tuple[torch.Tensor, ...]]:
    """Float and integer inputs; outputs that are an input, a constant, returned twice, integer."""
    net = NetBuilder(4)
    a, b, codes = net.input("a"), net.input("b"), net.input("codes")
    qa, qb = net.quantize(a, 40), net.quantize(b, 90, scale=0.01)
    s = net.call(reference.add, qa, qb, zero_points=(40, 90), multipliers=(1 << 14, 20000),
                 shifts=(-7, -7), output_zero_point=40, qmin=0, qmax=255)  # fmt: skip
    f = net.call(reference.reshape, s, shape=(0, 18))
    logits = net.logits(net.linear_accumulate(f, (18, 5), 40), 5)
    real = net.dequantize(s, 40)
    constant = net.tensor(torch.arange(4.0))
    moved = net.call(reference.permute, codes, dims=(1, 0))
    x = torch.randn(1, 2, 3, 3, generator=net.generator)
    inputs = (x, x * 2, net.ints(0, 255, (4, 3), torch.uint8))
    return net.finish((logits, real, real, a, constant, moved), *inputs), inputs


def test_several_inputs_and_outputs() -> None:
    graph, inputs = io_net()
    results = tvm_backend.compile(graph, targets.GENERIC).run_emulated(*inputs)
    for result, expected in zip(results, graph(*inputs), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


def test_shared_library_and_export_in_the_public_interface(tmp_path: Path) -> None:
    graph, x = residual_net()
    compiled = tvm_backend.compile(graph, targets.GENERIC)
    folder = compiled.export(tmp_path / "lib", form="standalone", name="Digits_1", shared=True)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert names == {*manifest["sha256"], "manifest.json"}
    assert names >= {"Digits_1.h", "Digits_1.c", "Digits_1.o", "Digits_1.a", "Digits_1.so",
                     "Digits_1.pc", "main.c", "CMakeLists.txt"}  # fmt: skip
    for file, expected in manifest["sha256"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == expected
    assert manifest["memory"]["arena_bytes"] >= manifest["memory"]["lower_bound_bytes"] > 0
    assert manifest["versions"]["llvm"] >= 20 and manifest["versions"]["compiler"]
    assert sum(kernel["calls"] for kernel in manifest["kernels"]) == len(manifest["steps"])
    assert "DIGITS_1_ARENA_BYTES" in (folder / "Digits_1.h").read_text()
    with pytest.raises(FileFormatError, match="standalone library"):
        tvm_backend.load(folder)
    loaded = tvm_backend.load(compiled.export(tmp_path / "relax"))
    assert torch.equal(loaded(x), graph(x))
    with pytest.raises(ConfigError, match="no standalone form"):
        loaded.export(tmp_path / "again", form="standalone")


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    program = lower(residual_net()[0], targets.GENERIC)
    for folder in ("a", "b"):
        export_standalone(program, tmp_path / folder, shared=True)
    digests = [json.loads((tmp_path / f / "manifest.json").read_text())["sha256"] for f in "ab"]
    assert digests[0] == digests[1]


def test_a_target_of_ones_own_without_a_compiler(tmp_path: Path) -> None:
    program = lower(residual_net()[0], RISCV64)
    library = export_standalone(program, tmp_path)
    assert not library.linked
    assert not (tmp_path / "net.a").exists() and not (tmp_path / "net.pc").exists()
    assert "net.c" in (tmp_path / "CMakeLists.txt").read_text()
    machine = (tmp_path / "objects/kernels.o").read_bytes()[18:20]
    assert machine == (243).to_bytes(2, "little")  # EM_RISCV
    assert (tmp_path / "objects/weights.o").read_bytes()[48:52] == (
        tmp_path / "objects/kernels.o"
    ).read_bytes()[48:52]  # flags: the same ABI
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["undefined_symbols"]) <= {"memcpy", "memset"}
    assert manifest["target"]["name"] == "riscv64"
    with pytest.raises(TargetError, match="shared library"):
        export_standalone(program, tmp_path, shared=True)
    with pytest.raises(TargetError, match="cannot be compiled"):
        library.build_example()


def test_cmake_makes_the_library_from_sources(tmp_path: Path) -> None:
    """The files that a target without a compiler gets, here with objects for this machine."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    from tvm_backend.standalone.extras import cmake_source
    from tvm_backend.standalone.header import Facts

    graph, x = residual_net()
    library = export_standalone(lower(graph, targets.GENERIC), tmp_path / "net")
    facts = Facts("net", "generic", "0", 1)
    (library.folder / "CMakeLists.txt").write_text(cmake_source(facts, linked=False))
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", str(library.folder), "-B", str(build)],
        ["cmake", "--build", str(build)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    shutil.copy(build / "main", library.folder / "main")
    assert np.array_equal(library.run([x])[0], graph(x).numpy())


def test_names_are_checked(tmp_path: Path) -> None:
    program = lower(residual_net()[0], targets.GENERIC)
    for name in (
        "",
        "1net",
        "a-b",
        "../net",
        "net.h",
        "main",
        "x" * 64,
        "né",
        "_net",
        "a b",
        "a\n",
        "string",
        5,
    ):
        with pytest.raises(ConfigError, match="name of a library"):
            export_standalone(program, tmp_path, name)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_arguments_of_export_are_checked(tmp_path: Path) -> None:
    compiled = tvm_backend.compile(residual_net()[0], targets.CORTEX_A53)
    for arguments in ({"form": "elf"}, {"name": "net"}, {"shared": True}):
        with pytest.raises(ConfigError, match="not possible"):
            compiled.export(tmp_path, **arguments)
    (tmp_path / "file").touch()
    for form in ("relax", "standalone"):
        with pytest.raises(ConfigError, match="file is no folder"):
            compiled.export(tmp_path / "file", form)


def test_an_export_replaces_another_one(tmp_path: Path) -> None:
    compiled = tvm_backend.compile(residual_net()[0], targets.GENERIC)
    (tmp_path / "notes").write_text("mine")
    kept = {"notes", "v1.h"}
    for form, name, expected in (
        ("standalone", "v1", {"v1.c", "v1.so", "objects/kernels.o"}),
        ("standalone", "v2", {"v2.c", "v2.so", "objects/kernels.o"}),
        ("relax", None, {"net.so"}),
        ("standalone", "net", {"net.c", "net.so", "objects/kernels.o"}),
    ):
        compiled.export(tmp_path, form, name=name, shared=form == "standalone")
        if name == "v1":
            (tmp_path / "v1.h").write_text("/* mine */")
        files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
        listed = json.loads((tmp_path / "manifest.json").read_text())["sha256"]
        assert files - kept - {"manifest.json"} == set(listed) - kept and expected <= files


def test_absent_tools_are_named(tmp_path: Path) -> None:
    llvm, mac = RISCV64.llvm, RISCV64.mac
    target = Target("odd", llvm, mac, 128, emulator="no-such-qemu", compiler="no-such-gcc")
    with pytest.raises(TargetError, match="no-such-gcc is not installed"):
        export_standalone(lower(residual_net()[0], target), tmp_path)
    compiled = tvm_backend.compile(residual_net()[0], RISCV64)
    with pytest.raises(TargetError, match="cannot be compiled"):
        compiled.run_emulated(residual_net()[1])


def test_big_endian_targets_are_refused(tmp_path: Path) -> None:
    llvm = (("mtriple", "powerpc64-linux-gnu"),)
    target = Target("big", llvm, targets.GENERIC.mac, 128)
    with pytest.raises(TargetError, match="little-endian"):
        export_standalone(lower(residual_net()[0], target), tmp_path)


def test_float_islands_are_refused(tmp_path: Path) -> None:
    net = NetBuilder()
    q = net.quantize(net.input())
    real = net.call(torch.sigmoid, net.dequantize(q, 110))
    graph = net.finish(real, torch.randn(1, 3, 4, 4))
    with pytest.raises(UnsupportedError, match="float_sigmoid"):
        export_standalone(lower(graph, targets.X86_VNNI), tmp_path)
