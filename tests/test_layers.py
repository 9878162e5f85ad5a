"""The import table of the design: who may import whom. Read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NUMERICS = {"errors", "numerics"}
GRAPH = NUMERICS | {"ops", "ir"}
LEAVES = {"config", "targets", "version"}
NETWORK = GRAPH | LEAVES | {"passes", "solvers", "model", "storage"}

# Layer of fxquant -> layers it may import. A layer is a package or module directly in fxquant.
ALLOWED = {
    "version": set(),
    "errors": set(),
    "targets": {"errors"},
    "allocator": set(),
    "numerics": {"errors"},
    "config": NUMERICS,
    "ops": NUMERICS,
    "ir": NUMERICS | {"ops"},
    "passes": GRAPH | {"config"},
    "solvers": GRAPH | {"config"},
    "model": GRAPH | LEAVES | {"passes"},
    "storage": GRAPH | LEAVES | {"model"},
    "calibration": GRAPH | {"config"},
    "recipes": NETWORK | {"calibration", "allocator"},
    "prepared": NETWORK | {"calibration", "recipes"},
    "api": NETWORK | {"calibration", "recipes", "allocator", "prepared"},
    "inspection": NETWORK | {"calibration"},
    "onnx": GRAPH | {"model"},
    "cli": None,  # the command line may use everything
    "__init__": None,  # the facade
    "__main__": None,
}
# Imports inside a function, for what a method of a lower layer offers as a convenience.
DEFERRED = {("model", "storage"), ("model", "inspection"), ("model", "onnx")}
BACKEND_MAY_USE = {"numerics", "ops", "ir", "model", "targets", "errors", "version"}


def layer_of(path: Path) -> str:
    """First component below fxquant/."""
    return path.relative_to(ROOT / "fxquant").parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported dotted names of a file, and whether each is at module level."""
    tree = ast.parse(path.read_text(), str(path))
    deferred = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        top = id(node) not in deferred
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "fxquant":  # `from fxquant import errors`
                found += [(f"fxquant.{alias.name}", top) for alias in node.names]
            else:
                found.append((node.module, top))
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("fxquant"), ids=ids)
def test_layers_of_fxquant(path: Path) -> None:
    layer = layer_of(path)
    assert layer in ALLOWED, f"{layer} is not in the table: decide what it may import"
    allowed = ALLOWED[layer]
    for name, top in imports(path):
        first, *rest = name.split(".")
        if first in ("tvm", "tvm_backend"):  # optional: the command line loads it when it compiles
            assert layer == "cli" and first == "tvm_backend" and not top, f"{path} imports {name}"
        if first != "fxquant" or allowed is None or not rest:
            continue
        if not top and (layer, rest[0]) in DEFERRED:
            continue
        assert rest[0] == layer or rest[0] in allowed, f"{ids(path)} imports {name}"


@pytest.mark.parametrize("path", sources("tvm_backend"), ids=ids)
def test_layers_of_the_backend(path: Path) -> None:
    for name, _ in imports(path):
        first, *rest = name.split(".")
        if first == "tvm":
            assert path.name == "tvm_api.py", f"{ids(path)} imports tvm"
        if first == "fxquant":
            assert rest and rest[0] in BACKEND_MAY_USE, f"{ids(path)} imports {name}"


def test_the_table_knows_every_layer() -> None:
    assert {layer_of(p) for p in sources("fxquant")} <= set(ALLOWED)


def test_only_public_parts_of_torch_fx() -> None:
    """Nothing from torch.ao, torchao or private torch.fx modules in the required path."""
    for path in sources("fxquant") + sources("tvm_backend"):
        for name, _ in imports(path):
            assert not name.startswith(("torch.ao", "torchao", "torch._")), f"{ids(path)}: {name}"
            if name.startswith("torch.fx."):
                assert not any(p.startswith("_") for p in name.split(".")), f"{ids(path)}: {name}"


IMPORT = """
import sys, random, logging, warnings, os
import torch, numpy
before = (
    torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
    torch.get_rng_state().tolist(), random.getstate(), logging.getLogger().handlers[:],
    logging.getLogger().level, list(warnings.filters), dict(os.environ), numpy.geterr(),
    torch.are_deterministic_algorithms_enabled(), sys.getrecursionlimit(), sys.excepthook,
    str(numpy.random.get_state()),
)
import fxquant
after = (
    torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
    torch.get_rng_state().tolist(), random.getstate(), logging.getLogger().handlers[:],
    logging.getLogger().level, list(warnings.filters), dict(os.environ), numpy.geterr(),
    torch.are_deterministic_algorithms_enabled(), sys.getrecursionlimit(), sys.excepthook,
    str(numpy.random.get_state()),
)
changed = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
assert not changed, f"import fxquant changed global state number {changed}"
loaded = [m for m in sys.modules if m.split(".")[0] in ("tvm", "tvm_backend", "torchao")]
assert not loaded, f"import fxquant loads {loaded[:3]}"
"""


def test_import_is_light_and_changes_no_global_state() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
