"""The C interface of a standalone library: errors, threads, sanitizers, compilers' warnings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxquant import targets
from fxquant.targets import Target
from tests.backend.integer_nets import residual_net
from tests.backend.kernel_harness import require
from tvm_backend.lower import lower
from tvm_backend.standalone import Standalone, export_standalone

CHECK = Path(__file__).with_name("standalone_check.c")
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
OBJECTS = ("objects/kernels.o", "objects/weights.o")
FOREIGN = [
    pytest.param(t, marks=pytest.mark.qemu) for t in (targets.CORTEX_A53, targets.ARMV7_NEON)
]


def compile_c(library: Standalone, output: str, *arguments: str, compiler: str = "") -> Path:
    name = compiler or library.target.compiler or "cc"
    command = [name, *arguments, "-I", str(library.folder), "-o", output]
    done = subprocess.run(command, cwd=library.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return library.folder / output


def run_c(library: Standalone, command: list[str]) -> str:
    emulator = [library.target.emulator, "-cpu", "max"] if library.target.emulator else []
    done = subprocess.run(
        [*emulator, *command], cwd=library.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_output(library: Standalone, net: tuple[GraphModule, Tensor], command: list[str]) -> None:
    """Run a program on the net's example and compare its output with the reference."""
    graph, x = net
    (library.folder / "in.bin").write_bytes(x.numpy().tobytes())
    run_c(library, [*command, "in.bin", "out.bin"])
    result = np.fromfile(library.folder / "out.bin", np.float32)
    assert np.array_equal(result, graph(x).numpy().reshape(-1))


@pytest.fixture(scope="module")
def net() -> tuple[GraphModule, Tensor]:
    return residual_net()


@pytest.fixture(scope="module")
def library(net: tuple[GraphModule, Tensor], tmp_path_factory) -> Standalone:
    return export_standalone(lower(net[0], targets.GENERIC), tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("target", FOREIGN, ids=str)
def test_interface_on_a_device(net: tuple[GraphModule, Tensor], target: Target, tmp_path) -> None:
    require(target)
    foreign = export_standalone(lower(net[0], target), tmp_path)
    compile_c(foreign, "check", *STRICT, "-static", str(CHECK), "net.a", "-pthread")
    check_output(foreign, net, ["./check"])


def test_interface_here(net: tuple[GraphModule, Tensor], library: Standalone) -> None:
    compile_c(library, "check", *STRICT, "-O2", str(CHECK), "net.a", "-pthread")
    check_output(library, net, ["./check"])


def test_sanitizers_find_nothing(net: tuple[GraphModule, Tensor], library: Standalone) -> None:
    for output, source in (("check_sanitized", str(CHECK)), ("main_sanitized", "main.c")):
        compile_c(library, output, *STRICT, *SANITIZE, source, "net.c", *OBJECTS, "-pthread")
        check_output(library, net, [f"./{output}"])


def test_valgrind_finds_nothing(net: tuple[GraphModule, Tensor], library: Standalone) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    compile_c(library, "main_plain", *STRICT, "-g", "main.c", "net.a")
    options = [
        "-q",
        "--leak-check=full",
        "--error-exitcode=9",
        "--expensive-definedness-checks=yes",
    ]
    check_output(library, net, ["valgrind", *options, "./main_plain"])


def test_strict_compilers_accept_the_sources(library: Standalone) -> None:
    (library.folder / "user.cpp").write_text(
        '#include "net.h"\nint main() { return net_inputs() == NET_INPUTS ? 0 : 1; }\n'
    )
    for level in ("-O0", "-O2"):
        compile_c(library, "strict", *STRICT, level, "-Wconversion", "main.c", "net.c", *OBJECTS)
    strict = ("-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror")
    compile_c(library, "user", *strict, "user.cpp", "net.a", compiler="c++")
    run_c(library, ["./user"])


def test_example_reports_wrong_files(net: tuple[GraphModule, Tensor], library: Standalone) -> None:
    program = str(library.build_example())
    x = net[1].numpy().tobytes()
    for content, arguments, message in (
        (x, ["in.bin"], "usage"),
        (x[:-1], ["in.bin", "out.bin"], "in.bin: cannot be read"),
        (x + b"1", ["in.bin", "out.bin"], "in.bin: cannot be read"),
        (x, ["absent.bin", "out.bin"], "absent.bin: cannot be read"),
        (x, ["in.bin", "no/folder/out.bin"], "cannot be written"),
    ):
        (library.folder / "in.bin").write_bytes(content)
        done = subprocess.run(
            [program, *arguments], cwd=library.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode in (1, 2)
        assert message in done.stderr


def test_cmake_and_pkg_config(library: Standalone, tmp_path: Path) -> None:
    for tool in ("cmake", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = str(library.folder)
    flags = subprocess.run(
        ["pkg-config", "--with-path", folder, "--cflags", "--libs", "net"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    compile_c(library, "packaged", "main.c", *flags)
    for command in (
        ["cmake", "-S", folder, "-B", str(tmp_path)],
        ["cmake", "--build", str(tmp_path)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "main").is_file()


def test_two_networks_in_one_program(library: Standalone, tmp_path: Path) -> None:
    """Names of a second library do not collide, though its kernels are the same."""
    graph, _ = residual_net()
    other = export_standalone(lower(graph, targets.GENERIC), tmp_path, "second")
    (tmp_path / "both.c").write_text(
        '#include "net.h"\n#include "second.h"\n'
        "int main(void) { return net_input(0)->bytes == second_input(0)->bytes ? 0 : 1; }\n"
    )
    compile_c(
        other, "both", *STRICT, "both.c", "second.a", str(library.folder / "net.a"),
        "-I", str(library.folder),
    )  # fmt: skip
    run_c(other, ["./both"])
    assert (tmp_path / "second.o").is_file()
    assert torch.equal(
        torch.from_numpy(other.run([residual_net()[1]])[0]), graph(residual_net()[1])
    )
