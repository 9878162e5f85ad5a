"""The examples run as users run them, and write what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxquant
import tvm_backend

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp("digits")
    command = [sys.executable, "examples/digits_quickstart.py", "--smoke", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, output


def test_the_compiled_network_equals_the_reference(demo: tuple[str, Path]) -> None:
    assert "compiled == reference: True" in demo[0]


def test_the_report_shows_every_section(demo: tuple[str, Path]) -> None:
    text = (demo[1] / "report.html").read_text("utf-8")
    assert "Weakest operators" in text and "Latency" in text


def test_the_written_files_load_and_agree(demo: tuple[str, Path]) -> None:
    quantized = fxquant.load(demo[1] / "digits.fxq")
    compiled = tvm_backend.load(demo[1] / "compiled", threads=1)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    assert torch.equal(compiled(x), quantized.reference(x))
    manifest = json.loads((demo[1] / "compiled" / "manifest.json").read_text())
    assert manifest["inputs"]
