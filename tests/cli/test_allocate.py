"""`fxquant allocate`: widths under budgets, and the options that quantize with them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fxquant.cli import allocate
from tests.cli.conftest import MODEL, Run
from tests.cli.test_quantize import weight_bits

NET = "tests.cli.nets:wide"


def test_quantize_takes_the_widths_it_is_told(run: Run, data: Path, tmp_path: Path) -> None:
    done = run(
        "allocate", NET, "--shape", "1,3,8,8", "--averages", "4.5", "--config", "W4A8", "--json"
    )
    (allocation,) = done.json["allocations"]
    assert len(set(allocation["bits"].values())) > 2
    output = tmp_path / "net.fxq"
    options = " ".join(allocation["options"]).split()
    command = ("quantize", NET, "--data", data, "--recipe", "rtn-max", "--output", output)
    assert run(*command, *options).code == 0
    found = {name.rpartition("_")[2]: bits for name, bits in weight_bits(output).items()}
    assert found == allocation["bits"]


def test_several_averages_are_a_front(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plots" / "front.png"
    arguments = ("allocate", NET, "--shape", "1,3,8,8", "--averages", "3,5", "--plot", plot)
    found = run(*arguments, "--json").json["allocations"]
    assert [round(a["average_chosen_bits"]) for a in found] == [3, 5]
    assert found[0]["loss"] > found[1]["loss"] and plot.stat().st_size > 1000
    text = run(*arguments).out
    assert text.count("quantize with: --config W8A8 --bits ") == 2 and "KiB  G bit-ops" in text


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("front.png", ["matplotlib.figure"], "matplotlib is not installed"),
        ("front.xyz", [], r"cannot be plotted as .*front\.xyz"),
    ],
)
def test_a_plot_that_cannot_be_is_refused_before_the_work(
    run: Run, name: str, missing: list[str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(allocate, "pareto_front", lambda *_, **__: pytest.fail("it has begun"))
    done = run("allocate", NET, "--shape", "1,3,8,8", "--plot", tmp_path / name)
    assert done.code == 1 and re.search(message, done.err)


def test_measurements_are_kept(run: Run, data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    arguments = ("allocate", MODEL, "--data", data, "--averages", "4", "--measured")
    first = run(*arguments, "--keep", kept, "--candidates", "3,4", "--json").json
    assert first["allocations"][0]["bits"] == {"stem": 8, "body": 4, "head": 8}
    before = json.loads(kept.read_text())
    again = run(*arguments, "--keep", kept, "--candidates", "3,4", "--json").json
    assert again == first and json.loads(kept.read_text()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shape", "1,3,8,8", "--measured"), "pass --data"),
        (("--shape", "1,3,8,8", "--minutes", "1"), "add --measured"),
        (("--shape", "1,3,8,8", "--averages", "1"), "cannot be reached"),
        ((), "pass --shape"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    run: Run, options: tuple[str, ...], message: str
) -> None:
    done = run("allocate", MODEL, *options)
    assert done.code == 1 and message in done.err
