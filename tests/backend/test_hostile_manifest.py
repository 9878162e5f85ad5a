"""Manifests of compiled networks that are damaged: one error before anything is loaded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant import targets
from fxquant.errors import FileFormatError
from tests.hostile import damaged_bytes, damaged_json, little_memory
from tvm_backend import load
from tvm_backend.manifest import MANIFEST, Manifest, Summary
from tvm_backend.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", (1, 3, 8, 8), "float32"),),
    (TensorSpec("a", (1, 5), "float32"), TensorSpec("b", (1, 2), "uint8")),
    {"scores": "a", "rest": ("b", [None])},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net")
    Manifest(targets.CORTEX_A55, SIGNATURE, Summary({"k": 2}, 64, 128), "0" * 64).write(path)
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / MANIFEST).read_text()


def test_round_trip(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    manifest = Manifest.read(folder)
    assert manifest.signature == SIGNATURE and manifest.target == targets.CORTEX_A55


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_documents(data: st.DataObject, folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(json.dumps(data.draw(damaged_json(json.loads(text)))))
    with contextlib.suppress(FileFormatError), little_memory():
        Manifest.read(folder)


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_bytes(data: st.DataObject, folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(data.draw(damaged_bytes(text.encode())))
    with contextlib.suppress(FileFormatError):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shape": [\n    1,', '"shape": [\n    4294967296,'),
        ('"shape": [\n    1,', '"shape": [\n    1.0,'),
        ('"memory_bytes": 64', '"memory_bytes": -1'),
        ('"value": "b"', '"literal": 3'),
    ],
    ids=["size", "float size", "memory", "outputs"],
)
def test_impossible_values(old: str, new: str, folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(json.dumps(json.loads(text), indent=1).replace(old, new, 1))
    assert new in (folder / MANIFEST).read_text()
    with pytest.raises(FileFormatError):
        Manifest.read(folder)


def test_nesting_and_size_are_bounded(folder: Path, text: str) -> None:
    tree = '{"tuple": [' * 400 + '{"value": "a"}' + "]}" * 400
    document = json.loads(text)
    document["structure"] = 0
    nested = json.dumps(document).replace('"structure": 0', f'"structure": {tree}')
    for content in (nested, text + " " * (17 << 20)):
        (folder / MANIFEST).write_text(content)
        with pytest.raises(FileFormatError):
            Manifest.read(folder)


def test_a_library_that_is_none(folder: Path, text: str) -> None:
    """The digest is checked before the file is loaded as code."""
    (folder / MANIFEST).write_text(text)
    (folder / "net.so").write_bytes(b"\x7fELF" + b"\0" * 60)
    with pytest.raises(FileFormatError, match="digest"):
        load(folder)
