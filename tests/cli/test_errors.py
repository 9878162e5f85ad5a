"""Exit codes, streams and messages: one clear error, no traceback, stdout for results only."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fxquant.cli import main, models
from fxquant.cli.archives import check_archive
from fxquant.cli.data import read_npz
from fxquant.cli.main import COMMANDS
from fxquant.errors import FileFormatError
from tests.cli.conftest import MODEL, Run

NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples(name: str, run: Run) -> None:
    done = run(name, "--help")
    assert done.code == 0 and f"  fxquant {name} " in done.out


def test_no_command_is_wrong_usage(run: Run) -> None:
    assert run().code == 2
    assert run("--version").code == 0


USAGE = {
    "unknown command": ("quantise",),
    "no data": ("quantize", MODEL, "--output", "x.fxq"),
    "precision": ("inspect", MODEL, "--config", "8bit"),
    "impossible precision": ("inspect", MODEL, "--config", "W9A8"),
    "target": ("compile", "x.fxq", "--output", "o", "--target", "z80"),
    "recipe": ("quantize", MODEL, "--data", "x", "--output", "x.fxq", "--recipe", "magic"),
    "bits": ("quantize", MODEL, "--data", "x", "--output", "x.fxq", "--bits", "head"),
    "shape": ("inspect", MODEL, "--shape", "1,x,3"),
    "threads": ("bench", "x.fxq", "--threads", "0"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage(case: str, run: Run) -> None:
    done = run(*USAGE[case])
    assert done.code == 2 and done.err.startswith("usage: fxquant") and not done.out


@pytest.fixture
def files(tmp_path: Path, data: Path) -> Path:
    """Files that cannot be used."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00junk")
    (tmp_path / "short.npy").write_bytes(data.read_bytes()[:-400])
    np.save(tmp_path / "ints.npy", np.zeros((4, 3, 8, 8), np.uint8))
    np.save(tmp_path / "small.npy", np.zeros((4, 3, 5), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "uneven.npz", a=np.zeros((3, 2)), b=np.zeros((4, 2)))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "bad.pt2").write_bytes(b"PK\x03\x04 no program")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("data/../../x", "no program")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 99)
    (tmp_path / "bad.fxq").write_bytes(b"\xff" * 99)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


FAILURES = {
    "no such module": ("quantize nowhere:net --data {data} --output {o}", "No module named"),
    "no such factory": ("quantize tests.cli.nets:none --data {data} --output {o}", "none"),
    "broken factory": ("quantize tests.cli.nets:broken --data {data} --output {o}", "no weights"),
    "no model": ("quantize tests.cli.nets:number --data {data} --output {o}", "returned a int"),
    "no description": ("quantize resnet --data {data} --output {o}", "is no model"),
    "absent program": ("quantize {f}/none.pt2 --data {data} --output {o}", "is not a file"),
    "damaged program": ("quantize {f}/bad.pt2 --data {data} --output {o}", "archive"),
    "other archive": ("quantize {f}/other.pt2 --data {data} --output {o}", "cannot read"),
    "damaged onnx": ("quantize {f}/bad.onnx --data {data} --output {o}", "cannot read"),
    "absent data": ("quantize {m} --data {f}/none.npy --output {o}", "cannot read"),
    "damaged array": ("quantize {m} --data {f}/bad.npy --output {o}", "cannot read"),
    "truncated array": ("quantize {m} --data {f}/short.npy --output {o}", "cannot read"),
    "integers": ("quantize {m} --data {f}/ints.npy --output {o}", "uint8"),
    "pickled objects": ("quantize {m} --data {f}/objects.npy --output {o}", "cannot read"),
    "wrong shape": ("quantize {m} --data {f}/small.npy --output {o}", "fails on the example"),
    "uneven arrays": ("quantize {m} --data {f}/uneven.npz --output {o}", "3 samples"),
    "damaged archive": ("quantize {m} --data {f}/bad.npz --output {o}", "archive"),
    "no images": ("quantize {m} --data {f}/empty --output {o}", "no images"),
    "no size": ("quantize {m} --data {f}/pictures --output {o}", "--size"),
    "damaged image": ("quantize {m} --data {f}/pictures --size 8 --output {o}", "a.png"),
    "colours": ("quantize {m} --data {f}/pictures --size 8 --mean 1,2 --output {o}", "--mean"),
    "unknown layer": ("quantize {m} --data {data} --bits tail=4 --output {o}", "tail"),
    "two averages": ("quantize {m} --data {data} --bits 4 --bits 5 --output {o}", "averages"),
    "no fxq": ("quantize nowhere:net --data {data} --output {f}/o.txt", "o.fxq"),
    "no such folder": ("quantize nowhere:net --data {data} --output /proc/x/o.fxq", "/proc/x"),
    "output is a folder": ("export {net} --onnx {f}/empty", "is a folder"),
    "no folder for a page": ("analyze {net} --data {data} --html {f}/bad.npy/r.html", "bad.npy"),
    "no array": ("run {net} {data} --engine reference --output {f}/o.txt", "o.npy"),
    "pixels": ("run {net} {f}/ints.npy --engine reference", "uint8"),
    "other data": ("analyze {net} --data {f}/small.npy", "has shape"),
    "no folder": ("quantize {m} --data {data} --output {f}/bad.fxq/x.fxq", "bad.fxq"),
    "no shape": ("inspect {m}", "--shape"),
    "damaged network": ("inspect {f}/bad.fxq", "cannot read the file"),
    "absent network": ("export {f}/none.fxq --onnx {f}/o", "is not a file"),
    "no network": ("analyze {f}/bad.npy --data {data}", "is no .fxq file"),
    "damaged folder": ("run {f}/empty {data}", "manifest.json"),
    "too many inputs": ("run {net} {data} {data} --engine reference", "takes 1"),
    "too many outputs": ("run {net} {data} --engine reference --output a.npy b.npy", "2 output"),
    "target of the reference": ("run {net} {data} --engine reference --target generic", "target"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_failures(case: str, run: Run, files: Path, data: Path, net: Path) -> None:
    line, part = FAILURES[case]
    command = line.format(m=MODEL, data=data, f=files, o=files / "o.fxq", net=net).split()
    if command[0] == "run" and "empty" in line:
        pytest.importorskip("tvm")
    done = run(*command)
    assert done.code == 1 and part in done.err and not done.out, done
    assert "fxquant: error: " in done.err and "Traceback" not in done.err
    failed = run(*command, "--json")
    assert failed.code == 1 and part in json.dumps(failed.json["error"])


def test_stdout_is_for_results_even_if_the_factory_prints(run: Run, data: Path) -> None:
    done = run("quantize", "tests.cli.nets:broken", "--data", data, "--output", "x.fxq")
    assert "this goes to stderr" in done.err and not done.out
    verbose = run("quantize", "tests.cli.nets:broken", "--data", data, "--output", "x.fxq", "-v")
    assert "Traceback" in verbose.err


def test_interruption(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "read_model", interrupt)
    done = run("inspect", MODEL, "--shape", "1,3,8,8")
    assert done.code == 130 and done.err == "fxquant: interrupted\n"


def test_a_reader_that_goes_away_is_no_error(
    net: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Closed(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with (tmp_path / "out").open("wb") as file:
        monkeypatch.setattr(sys, "stdout", Closed(file))
        assert main(["inspect", str(net)]) == 0


def test_archives_that_unpack_to_too_much(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 1000)))
    check_archive(tmp_path / "bomb.npz", 1 << 24)
    with pytest.raises(FileFormatError, match="unpacks to"):
        check_archive(tmp_path / "bomb.npz", 1 << 20)


def test_an_array_header_that_promises_more_than_the_file_has(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 1 << 20)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(FileFormatError, match="does not fill"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("limit", [4000, 6000], ids=["error", "warning"])
def test_images_that_unpack_to_too_much(
    limit: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    done = run("quantize", MODEL, "--data", tmp_path, "--size", 8, "--output", tmp_path / "o.fxq")
    assert done.code == 1 and "bomb.png" in done.err
