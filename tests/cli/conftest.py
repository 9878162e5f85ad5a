"""Runs the command line in this process, on data made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxquant.cli import main

MODEL = "tests.cli.nets:tiny"


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with these arguments."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 inputs in an .npy file."""
    path = tmp_path_factory.mktemp("data") / "x.npy"
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(path, x.numpy())
    return path


@pytest.fixture(scope="session")
def net(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network, quantized by the command line."""
    path = tmp_path_factory.mktemp("net") / "tiny.fxq"
    assert main(["quantize", MODEL, "--data", str(data), "--output", str(path)]) == 0
    return path
