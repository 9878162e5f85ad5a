"""Damaging files in every way a reader must survive, and watching how much memory it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 63, -(10**30), 0.5, float("nan"), float("inf"), "", "x",
    "../../etc/passwd", "\0", "a" * 5000, [], {}, [[]], [1 << 62] * 3, {"node": "x"},
    {"tuple": [0]}, {"float": "nan"}, {"slice": [0, 1, 0]}, {"dict": {"": 1}}, ["x", -1],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value inside a JSON document."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> Any:
    """A document with one value replaced by junk, taken out, or put in twice."""
    *parents, key = draw(st.sampled_from([p for p in places(document) if p]))
    copy = _copied(document)
    holder = copy
    for parent in parents:
        holder = holder[parent]
    match draw(st.sampled_from(("junk", "junk", "drop", "twice"))):
        case "junk":
            holder[key] = draw(st.sampled_from(JUNK))
        case "drop":
            del holder[key]
        case "twice" if isinstance(holder, list):
            holder.insert(key, holder[key])
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with a few bytes changed, and possibly cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


def _address_space(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@contextmanager
def little_memory(limit: int = 1 << 30) -> Iterator[None]:
    """Fails if the block makes the address space grow by more than `limit` bytes at any time."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell its memory use")
    before = max(_address_space("VmPeak"), _address_space("VmSize") + limit)
    yield
    assert _address_space("VmPeak") <= before, "a size from the file was allocated unchecked"
