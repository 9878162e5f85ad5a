"""Documentation of everything public: arguments, attributes and errors are described."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fxquant
import tvm_backend
from fxquant import errors, inspection, recipes, solvers, targets

ROOT = Path(__file__).resolve().parent.parent
PACKAGES: tuple[ModuleType, ...] = (fxquant, inspection, recipes, solvers, targets, tvm_backend)
ERRORS = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}


def public() -> Iterator[tuple[str, object]]:
    """Functions, and classes with their methods, by dotted name."""
    for package in PACKAGES:
        for name in package.__all__:
            value = getattr(package, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            yield f"{package.__name__}.{name}", value
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{package.__name__}.{name}.{method}", function


PUBLIC = dict(public())


def documentation(value: object) -> str:
    text = inspect.getdoc(value)
    assert text, "no docstring"
    return text


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_described(name: str) -> None:
    assert len(documentation(PUBLIC[name]).splitlines()[0]) > 8


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if inspect.isfunction(v)])
def test_arguments_are_described_all_or_none(name: str) -> None:
    """One obvious argument may go without; where there is a list, it is complete."""
    text = documentation(PUBLIC[name])
    parameters = [p for p in inspect.signature(PUBLIC[name]).parameters if p != "self"]
    if len(parameters) > 2 and not re.search(r"[Aa]rguments as in|See [`A-Z]|As in", text):
        assert "Args:" in text
    if "Args:" in text:
        missing = [p for p in parameters if not re.search(rf"^ +\*?{p}:", text, re.MULTILINE)]
        assert not missing


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if dataclasses.is_dataclass(v)])
def test_fields_are_described_all_or_none(name: str) -> None:
    text = documentation(PUBLIC[name])
    fields = [f.name for f in dataclasses.fields(PUBLIC[name]) if not f.name.startswith("_")]
    if "Attributes:" in text:
        own = [f for f in fields if f in vars(PUBLIC[name]).get("__annotations__", {})]
        assert not [f for f in own if not re.search(rf"^ +{f}:", text, re.MULTILINE)]
    else:
        assert len(fields) <= 4, "describe the fields under Attributes:"


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if dataclasses.is_dataclass(v)])
def test_shapes_of_tensors_are_described(name: str) -> None:
    """`codes: int8 [O, ...]`: the shape stands in brackets."""
    for field in dataclasses.fields(PUBLIC[name]):
        if not re.search(r"\bTensor\b", str(field.type)):
            continue
        text = re.search(rf"^ +{field.name}:(.*\n?.*)", documentation(PUBLIC[name]), re.MULTILINE)
        assert text is not None and "[" in text.group(1), field.name


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if inspect.isfunction(v)])
def test_errors_raised_on_the_spot_are_described(name: str) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(PUBLIC[name])))
    raised = {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    } & ERRORS
    text = documentation(PUBLIC[name])
    section = text.partition("Raises:")[2]
    undocumented = {error for error in raised if error not in section}
    assert not undocumented


@pytest.mark.slow
def test_pages_are_built_from_docstrings(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="builds the pages")
    rule = re.search(r"^docs:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule is not None
    command = rule.group(1).replace("$(PY)", sys.executable).replace("build/docs", str(tmp_path))
    subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)
    page = (tmp_path / "fxquant.html").read_text("utf-8")
    assert "prepare" in page and "calibrate" in page
    assert "GPTQ" in (tmp_path / "fxquant" / "solvers.html").read_text("utf-8")
    assert (tmp_path / "tvm_backend.html").is_file()
