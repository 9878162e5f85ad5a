"""The coverage table: a network is measured once, compared, and what fails has its row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tvm_backend
from benchmarks import coverage
from benchmarks.coverage import Row, load, main, table


class Small(nn.Module):
    """An integer convolution and, on request, what has no integer form."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = self.layer(x)
        if self.kind == "data" and x.sum() > 0:
            return x
        x = torch.relu(x).mean((2, 3))
        if self.kind == "zero":
            return x * 0
        return x.softmax(1) if self.kind == "island" else x


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks by their names, and which were asked for."""
    asked: list[str] = []

    def network(name: str, size: int) -> nn.Module:
        assert size == 9
        asked.append(name)
        torch.manual_seed(0)
        return Small(name).eval()

    monkeypatch.setattr(coverage, "network", network)
    return asked


def test_rows_are_measured_once(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, document = tmp_path / "rows.json", tmp_path / "table.md"
    document.write_text("<!-- table coverage -->\n<!-- end -->\n")
    options = ["--results", str(file), "--document", str(document)]
    main(["--nets", "whole@9", "island@9", *options])
    main(["--nets", "data@9", "whole@9", *options])
    assert measured == ["whole", "island", "data"]
    rows = load(file)
    whole, island, data = (rows[name, 9] for name in ("whole", "island", "data"))
    assert whole.equal and not whole.islands and whole.sqnr > 20 and whole.operators == 4
    assert island.islands == (("softmax", 1),) and island.sqnr > 20
    assert data.error and not data.equal
    text = table(list(rows.values()))
    assert text.startswith("3 networks: 1 run in integers from end to end, ")
    assert text in document.read_text() and text in capsys.readouterr().out


def test_a_wrong_kernel_is_seen(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = tvm_backend.compile

    def wrong(*args: object, **options: object) -> object:
        call = compiled(*args, **options)  # type: ignore[arg-type]
        return lambda x: call(x) + 1e-6

    monkeypatch.setattr(tvm_backend, "compile", wrong)
    row = coverage.measure("whole", 9)
    assert not row.equal and row.cells[3] == "no"


def test_zeros_are_no_result(measured: list[str]) -> None:
    row = coverage.measure("zero", 9)
    assert not row.equal and "zeros" in row.error


def test_cells() -> None:
    row = Row("net", 64, 10, (("softmax", 2), ("stack", 1)), True, 31.25)
    assert row.cells == ["net", "64", "10", "yes", "31.2", "softmax (2), stack"]
    assert Row("net", 64, error="no").cells[-1] == "no result: no"
