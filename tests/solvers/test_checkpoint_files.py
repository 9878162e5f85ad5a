"""Files of solved units that are damaged: one error that says which file to delete."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

import fxquant
from fxquant.errors import FileFormatError
from fxquant.solvers.checkpoint import Checkpoint
from tests.hostile import JUNK, damaged_bytes, little_memory

OWNER = "somebody"


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxquant.Prepared, Path, bytes]:
    """A calibrated model, and the file of its solved unit."""
    folder = tmp_path_factory.mktemp("units")
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5, 5)
    prepared = fxquant.prepare(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), x[:1])
    fxquant.calibrate(prepared, [x], fxquant.solvers.GPTQ(), progress=False)
    (record,) = prepared.finished.values()
    Checkpoint(folder, OWNER).add("unit", record)
    (path,) = folder.iterdir()
    return prepared, path, path.read_bytes()


def parts(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(str(path), "pt") as file:
        return file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def test_what_was_stored_comes_back(solved: tuple[fxquant.Prepared, Path, bytes]) -> None:
    prepared, path, content = solved
    path.write_bytes(content)
    loaded = Checkpoint(path.parent, OWNER).load(prepared.graph)["unit"]
    (record,) = prepared.finished.values()
    for name, weight in record.weights.items():
        assert torch.equal(loaded.weights[name].codes, weight.codes)
    assert loaded.notes == record.notes and loaded.biases.keys() == record.biases.keys()


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_bytes(data: st.DataObject, solved: tuple[fxquant.Prepared, Path, bytes]) -> None:
    prepared, path, content = solved
    path.write_bytes(data.draw(damaged_bytes(content)))
    with contextlib.suppress(FileFormatError), little_memory():
        Checkpoint(path.parent, OWNER).load(prepared.graph)


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_contents(
    data: st.DataObject, solved: tuple[fxquant.Prepared, Path, bytes]
) -> None:
    prepared, path, content = solved
    path.write_bytes(content)
    about, tensors = parts(path)
    if data.draw(st.booleans()):
        field = data.draw(st.sampled_from(("losses", "notes")))
        about[field] = json.dumps(data.draw(st.sampled_from(JUNK)))
    else:
        name = data.draw(st.sampled_from(sorted(tensors)))
        value = tensors.pop(name)
        shapes = (value, value[:0], value.double(), value.flatten(), value.float() * float("nan"))
        new = data.draw(st.sampled_from((name, "codes/other", "grid/x", "nonsense", "codes/")))
        tensors[new] = data.draw(st.sampled_from(shapes)).contiguous()
    path.write_bytes(save(tensors, about))
    with contextlib.suppress(FileFormatError):
        Checkpoint(path.parent, OWNER).load(prepared.graph)


@pytest.mark.parametrize("size", [0, 2])
def test_grids_are_one_number(size: int, solved: tuple[fxquant.Prepared, Path, bytes]) -> None:
    prepared, path, content = solved
    path.write_bytes(content)
    about, tensors = parts(path)
    tensors |= {"grid/_0": torch.ones(size), "zero/_0": torch.zeros(size, dtype=torch.int32)}
    path.write_bytes(save(tensors, about))
    with pytest.raises(FileFormatError, match="delete the file"):
        Checkpoint(path.parent, OWNER).load(prepared.graph)


def test_codes_of_another_type_are_refused(
    solved: tuple[fxquant.Prepared, Path, bytes],
) -> None:
    prepared, path, content = solved
    path.write_bytes(content)
    about, tensors = parts(path)
    (name,) = (k for k in tensors if k.startswith("codes/"))
    for codes in (tensors[name].float(), tensors[name][:1], torch.full_like(tensors[name], -128)):
        path.write_bytes(save(tensors | {name: codes.contiguous()}, about))
        with pytest.raises(FileFormatError, match="delete the file"):
            Checkpoint(path.parent, OWNER).load(prepared.graph)


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "units").write_text("")
    with pytest.raises(FileFormatError, match="is no directory"):
        Checkpoint(tmp_path / "units", OWNER)
