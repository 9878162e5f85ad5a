"""The accuracy benchmark keeps what it has measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy
from tests.benchmarks.test_tables import cell


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The cells that runs measure, in stand-ins for the checkpoints; the third one fails once."""
    found: list[str] = []

    def measure(
        _assets: Any, name: str, config: str, recipe: str, seed: int, _arguments: Any
    ) -> dict:
        found.append(f"{name}:{config}:{recipe}:{seed}")
        if len(found) == 3:
            raise KeyboardInterrupt
        return {**cell(recipe, config, seed), "cpu_seconds": 1.0}

    monkeypatch.setattr(accuracy, "measure", measure)
    monkeypatch.setattr(accuracy.Assets, "open", lambda _path: None)
    arguments = ["net", "--configs", "W8A8", "W4A8", "--recipes", "gptq", "--seeds", "0", "1"]
    results = ["--results", str(tmp_path / "cells.json")]
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments, *results])
    return found


def test_finished_cells_are_not_measured_again(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        accuracy.main()
    assert len(json.loads((tmp_path / "cells.json").read_text())) == 2
    accuracy.main()
    accuracy.main()
    every = [f"net:{config}:gptq:{seed}" for config in ("W8A8", "W4A8") for seed in (0, 1)]
    assert measured == [*every[:3], *every[2:]]
    assert sorted(json.loads((tmp_path / "cells.json").read_text())) == sorted(every)
