"""`.fxq` files that are damaged or malicious: one error, no code runs, sizes are not believed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn

import fxquant
from fxquant.errors import FileFormatError
from tests.hostile import damaged_bytes, damaged_json, little_memory


class _Net(nn.Module):
    """Integer layers, a pool, and a float island with keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 3, 3, 2, 1), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        return torch.softmax(self.head(x.mean((2, 3))), dim=1)


def _stored(folder: Path) -> bytes:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 9, 9)
    fxquant.quantize(_Net(), [x], progress=False).save(folder / "net.fxq")
    return (folder / "net.fxq").read_bytes()


class _Good:
    """The stored network, apart from the arguments of property tests, which print them all."""

    content: bytes
    parts: tuple[dict[str, Any], dict[str, torch.Tensor]]


_GOOD = _Good()


@pytest.fixture(scope="module", autouse=True)
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("net")
    _GOOD.content = _stored(folder)
    _GOOD.parts = _parts(_GOOD.content, folder / "net.fxq")
    return _GOOD.content


def _parts(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path.write_bytes(content)
    with safe_open(str(path), "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["fxquant"]), tensors


def _load(path: Path) -> fxquant.Quantized | None:
    """The network; None if it was refused with the one error."""
    with contextlib.suppress(FileFormatError), little_memory():
        return fxquant.load(path)
    return None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "x.fxq"


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes(data: st.DataObject, scratch: Path) -> None:
    scratch.write_bytes(data.draw(damaged_bytes(_GOOD.content)))
    _load(scratch)


@settings(max_examples=80)
@given(data=st.data())
def test_damaged_documents(data: st.DataObject, scratch: Path) -> None:
    """What loads nevertheless is a network that can be printed and stored again."""
    document, tensors = _GOOD.parts
    changed = data.draw(damaged_json(document))
    scratch.write_bytes(save(tensors, {"fxquant": json.dumps(changed)}))
    network = _load(scratch)
    if network is not None:
        with contextlib.suppress(fxquant.FxQuantError):
            str(network)
            network.save(scratch)


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_tensors(data: st.DataObject, scratch: Path) -> None:
    document, tensors = _GOOD.parts[0], dict(_GOOD.parts[1])
    name = data.draw(st.sampled_from(sorted(tensors)))
    dtype = data.draw(st.sampled_from((torch.float32, torch.int8, torch.uint8, torch.float16)))
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    value = data.draw(st.sampled_from((0.0, -1.0, float("nan"), float("inf"), 1e-44)))
    tensors[name] = torch.full(shape, value if dtype.is_floating_point else 1).to(dtype)
    scratch.write_bytes(save(tensors, {"fxquant": json.dumps(document)}))
    _load(scratch)


def test_truncated_in_every_region(content: bytes, scratch: Path) -> None:
    """Length, header, the border to the tensors, tensors, last byte."""
    header = 8 + int.from_bytes(content[:8], "little")
    for size in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(content) - 1):
        scratch.write_bytes(content[:size])
        with pytest.raises(FileFormatError):
            fxquant.load(scratch)


@pytest.mark.parametrize("claim", [1 << 20, 1 << 33, 1 << 62, (1 << 64) - 1])
def test_a_header_that_claims_to_be_huge(claim: int, content: bytes, scratch: Path) -> None:
    scratch.write_bytes(claim.to_bytes(8, "little") + content[8:])
    with little_memory(), pytest.raises(FileFormatError):
        fxquant.load(scratch)


def test_tensors_that_claim_to_be_huge(scratch: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}
    text = json.dumps(header | {"__metadata__": {"fxquant": "{}"}}).encode()
    scratch.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 64)
    with little_memory(), pytest.raises(FileFormatError):
        fxquant.load(scratch)


def test_nesting_that_exhausts_the_stack(content: bytes, scratch: Path) -> None:
    document, tensors = _parts(content, scratch)
    text = json.dumps(document).replace('"version": 1', '"x": ' + "[" * 9000 + "]" * 9000)
    scratch.write_bytes(save(tensors, {"fxquant": text}))
    with pytest.raises(FileFormatError):
        fxquant.load(scratch)


def _node(document: dict[str, Any], target: str) -> dict[str, Any]:
    return next(n for n in document["nodes"] if str(n.get("target", "")).endswith(target))


def _keyword(document: dict[str, Any], path: Path) -> None:
    code = f"dim=[open({str(path)!r}, 'w').close(), 1][1], x"
    _node(document, "softmax")["kwargs"] = {"dict": {code: 1}}


def _text(document: dict[str, Any], path: Path) -> None:
    code = f"\\', open({str(path)!r}, 'w').close(), '"
    _node(document, "softmax")["kwargs"] = {"dict": {"dim": code}}


def _key(document: dict[str, Any], path: Path) -> None:
    code = f"': 1}}, open({str(path)!r}, 'w').close(), {{'"
    _node(document, "softmax")["kwargs"] = {"dict": {"dim": {"dict": {code: 1}}}}


def _name(document: dict[str, Any], path: Path) -> None:
    document["nodes"][0]["name"] = f"x=open({str(path)!r}, 'w')"


@pytest.mark.parametrize("attack", [_keyword, _text, _key, _name], ids=lambda f: f.__name__)
def test_code_in_a_file_is_never_run(
    attack: Callable[[dict[str, Any], Path], None], content: bytes, tmp_path: Path
) -> None:
    """The graph becomes Python source: nothing of the file may become source as it is."""
    path, trap = tmp_path / "x.fxq", tmp_path / "trap"
    document, tensors = _parts(content, path)
    attack(document, trap)
    save_file(tensors, str(path), {"fxquant": json.dumps(document)})
    with contextlib.suppress(Exception):
        network = fxquant.load(path)
        network.calibrated(torch.zeros(1, 2, 9, 9))
    assert not trap.exists()


def test_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(FileFormatError, match="is not a file"):
            fxquant.load(path)
