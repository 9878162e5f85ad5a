"""The examples of docs/cli.md work as written."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from fxquant.cli import main

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    network, data = blocks("python")
    (tmp_path / "mynet.py").write_text(network)
    exec(compile(data, "docs/cli.md", "exec"), {})
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) > 10
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "fxquant" and main(arguments) == 0, command
    assert (tmp_path / "net.onnx").is_file() and any((tmp_path / "build" / "arm").glob("*.h"))
