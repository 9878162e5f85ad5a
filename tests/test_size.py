"""Files stay small enough to be read in one go, and documented."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 400
FOLDERS = ("fxquant", "tvm_backend", "tests", "benchmarks", "examples")
FILES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_size(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LIMIT, f"{len(lines)} lines: split the file by idea"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stat().st_size > 0], ids=lambda p: str(p.relative_to(ROOT))
)
def test_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "say in a docstring why this file exists"
