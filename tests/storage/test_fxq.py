"""`.fxq` files: round trips, and files nobody should trust."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fxquant
from fxquant.errors import FileFormatError, UnsupportedError
from fxquant.numerics.packing import pack_codes, packed_size, unpack_codes


class Net(nn.Module):
    """A few layers with a residual, a table, a pool and an island."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, 2, 1)
        self.body = nn.Conv2d(5, 5, 3, 1, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(nn.functional.hardswish(self.stem(x)), 2)
        x = torch.relu(self.body(x) + x).mean((2, 3))
        return torch.softmax(self.head(x), 1)


@pytest.fixture(scope="module")
def quantized() -> fxquant.Quantized:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 11)
    config = fxquant.W8A8.with_rules(names={"body": fxquant.OpConfig(weight_bits=3)})
    return fxquant.quantize(Net(), [x], x[:1], config, progress=False)


@pytest.fixture
def stored(quantized: fxquant.Quantized, tmp_path: Path) -> Path:
    path = tmp_path / "net.fxq"
    quantized.save(path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change the document and the tensors of a file."""
    with safe_open(str(path), "pt") as file:
        document = json.loads(file.metadata()["fxquant"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(document, tensors)
    save_file(tensors, str(path), {"fxquant": json.dumps(document)})


@given(st.integers(2, 8), st.lists(st.integers(0, 255), max_size=40))
def test_packing_round_trip(bits: int, raw: list[int]) -> None:
    half = 1 << (bits - 1)
    codes = np.array([r % (2 * half) - half for r in raw], np.int8)
    stream = pack_codes(codes, bits)
    assert stream.size == packed_size(codes.size, bits)
    assert np.array_equal(unpack_codes(stream, bits, codes.shape), codes)


def test_round_trip_is_the_same_network(quantized: fxquant.Quantized, stored: Path) -> None:
    loaded = fxquant.load(stored)
    x = torch.randn(3, 3, 9, 11)
    assert torch.equal(loaded.reference(x), quantized.reference(x))
    assert torch.equal(loaded(x), quantized(x))
    assert str(loaded) == str(quantized)
    assert loaded.float_islands == quantized.float_islands


def test_round_trip_of_mixed_widths(tmp_path: Path) -> None:
    """16-bit values beside 8-bit ones come back, and run alike."""
    x = torch.randn(4, 3, 9, 11)
    config = fxquant.Config(default=fxquant.OpConfig(4, 16), names={"body": fxquant.OpConfig()})
    torch.manual_seed(0)
    wide = fxquant.quantize(Net(), [x], x[:1], config, progress=False)
    wide.save(tmp_path / "wide.fxq")
    loaded = fxquant.load(tmp_path / "wide.fxq")
    assert torch.equal(loaded.reference(x), wide.reference(x))
    assert {"u16", "u8"} <= set(str(loaded).split())


def test_same_network_same_bytes(
    quantized: fxquant.Quantized, stored: Path, tmp_path: Path
) -> None:
    again, reloaded = tmp_path / "again.fxq", tmp_path / "reloaded.fxq"
    quantized.save(again)
    fxquant.load(stored).save(reloaded)
    assert stored.read_bytes() == again.read_bytes() == reloaded.read_bytes()


def test_codes_are_packed_at_their_width(stored: Path) -> None:
    with safe_open(str(stored), "pt") as file:
        sizes = {k: file.get_tensor(k).numel() for k in file.keys()}  # noqa: SIM118
    assert sizes["body_weight"] == packed_size(5 * 5 * 9, 3)
    assert sizes["stem_weight"] == 5 * 3 * 9


def test_island_function_outside_the_list_cannot_be_saved(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x).abs()

    x = torch.randn(2, 3, 4, 4)
    odd = fxquant.quantize(Odd(), [x], x[:1], progress=False)
    with pytest.raises(UnsupportedError, match="cannot be stored"):
        odd.save(tmp_path / "odd.fxq")


class Results(nn.Module):
    """A dict of results, not in the order of its keys."""

    def __init__(self, *keys: Any) -> None:
        super().__init__()
        self.keys, self.conv = keys, nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[Any, torch.Tensor]:
        return {key: self.conv(x) * i for i, key in enumerate(self.keys)}


def test_results_keep_their_order(tmp_path: Path) -> None:
    """Also in a folder that does not exist yet."""
    x, path = torch.randn(2, 3, 4, 4), tmp_path / "new" / "net.fxq"
    quantized = fxquant.quantize(Results("scores", "boxes").eval(), [x], progress=False)
    quantized.save(path)
    assert list(fxquant.load(path)(x)) == ["scores", "boxes"] == list(quantized(x))


def test_keys_that_are_no_strings_cannot_be_saved(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 4)
    quantized = fxquant.quantize(Results(3).eval(), [x], progress=False)
    with pytest.raises(UnsupportedError, match="key 3"):
        quantized.save(tmp_path / "net.fxq")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="is not a file"):
        fxquant.load(tmp_path / "none.fxq")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}"])
def test_not_a_fxq_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.fxq"
    path.write_bytes(content)
    with pytest.raises(FileFormatError):
        fxquant.load(path)


def test_header_with_a_huge_size_is_refused(stored: Path) -> None:
    data = stored.read_bytes()
    stored.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    with pytest.raises(FileFormatError):
        fxquant.load(stored)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated(stored: Path, keep: float) -> None:
    data = stored.read_bytes()
    stored.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(FileFormatError):
        fxquant.load(stored)


def test_newer_version_says_so(stored: Path) -> None:
    rewrite(stored, lambda d, _: d.update(version=99))
    with pytest.raises(FileFormatError, match="version 99"):
        fxquant.load(stored)


def _node(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(n for n in document["nodes"] if n["name"] == name)


def _set(node: str, /, **fields: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(document: dict[str, Any], _: Any) -> None:
        _node(document, node).update(fields)

    return change


def _grid(node: str, /, **fields: Any) -> Callable[[dict[str, Any], Any], None]:
    return lambda document, _: _node(document, node)["quant"]["spec"].update(fields)


def _drop(tensor: str) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    return lambda _, tensors: tensors.pop(tensor)


def _windows(document: dict[str, Any], _: Any) -> None:
    pool = next(n for n in document["nodes"] if n.get("target") == "op:max_pool2d")
    row = {"tuple": [0, 10_000, 1]}
    pool["kwargs"]["dict"]["rows"]["tuple"][0] = row


HOSTILE = {
    "unknown operator": _set("stem", target="os:system"),
    "dangerous torch function": _set("stem", target="torch:load"),
    "dangerous aten operator": _set("stem", target="aten:from_file.default"),
    "dangerous method": _set("stem", target="method:__class__"),
    "impossible shape": _set("stem_weight", shape=[1 << 62, 3, 3, 3]),
    "wrong shape": _set("stem", shape=[1, 5, 50, 6]),
    "node name": _set("head", name="../../etc/passwd"),
    "missing scale": _drop("stem_weight.scale"),
    "missing codes": _drop("body_weight"),
    "pool outside": _windows,
    "forward reference": _set("stem", args=[{"node": "head"}]),
    "number for a value": lambda d, _: _node(d, "body")["args"].__setitem__(3, 3),
    "no bits": lambda d, _: next(n for n in d["nodes"] if "quant" in n)["quant"]["spec"].pop(
        "bits"
    ),
    "weight of 16 bits": _grid("body_weight", bits=16),
    "signed activation": _grid("stem", signed=True),
    "zero scale": lambda d, _: _node(d, "x")["quant"].update(scale=0.0),
    "nan bias": lambda _, t: next(t[k] for k in t if "bias" in k).fill_(float("nan")),
    "nodes is a number": lambda d, _: d.update(nodes=7),
    "batch": lambda d, _: d.update(batch=-1),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(stored: Path, case: str) -> None:
    rewrite(stored, HOSTILE[case])
    with pytest.raises(FileFormatError):
        fxquant.load(stored)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_harmless(data: st.DataObject) -> None:
    """A corrupt file loads as some valid network or fails with the one error."""
    good = _GOOD.read()
    place = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255))
    _GOOD.path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
    with contextlib.suppress(FileFormatError):
        fxquant.load(_GOOD.path)


class _Good:
    """A stored network shared by the examples of the property test."""

    def __init__(self) -> None:
        self.path, self.content = Path(), b""

    def read(self) -> bytes:
        return self.content


_GOOD = _Good()


@pytest.fixture(scope="module", autouse=True)
def _good_file(quantized: fxquant.Quantized, tmp_path_factory: pytest.TempPathFactory) -> None:
    _GOOD.path = tmp_path_factory.mktemp("fuzz") / "net.fxq"
    quantized.save(_GOOD.path)
    _GOOD.content = _GOOD.path.read_bytes()
