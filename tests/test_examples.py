"""The examples run as users run them, and write what they say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

import fxquant
import tvm_backend

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "examples").rglob("*.py")
}
TESTED = {
    "examples.digits_quickstart",
    "examples.compare_solvers",
    "examples.mixed_precision",
    "examples.imagenet_recipe",
    "examples.inspect_graphs",
    "examples.compile_for_arm",
    "examples.c_program.export",
}


def run(module: str, output: Path, *options: str) -> str:
    """What an example prints with --smoke."""
    command = [sys.executable, "-m", module, "--smoke", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert EXAMPLES == TESTED


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


def test_the_compiled_network_equals_the_simulated_one(demo: tuple[str, Path]) -> None:
    assert "compiled == simulated: True" in demo[0]


def test_the_report_shows_every_section(demo: tuple[str, Path]) -> None:
    text = (demo[1] / "report.html").read_text("utf-8")
    for section in ("Weakest operators", "Latency", "Slowest operators", "Memory", "Graph"):
        assert section in text, section


def test_the_written_files_load_and_agree(demo: tuple[str, Path]) -> None:
    quantized = fxquant.load(demo[1] / "digits.fxq")
    compiled = tvm_backend.load(demo[1] / "compiled", threads=1)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    assert torch.equal(compiled(x), quantized.reference(x))
    manifest = json.loads((demo[1] / "compiled" / "manifest.json").read_text())
    assert manifest["inputs"]


def test_solvers_are_compared_in_a_table_and_a_plot(tmp_path: Path) -> None:
    text = run("examples.compare_solvers", tmp_path)
    assert "rtn-mse" in text and "gptq" in text
    assert (tmp_path / "solvers.png").is_file() == ("\nplot:" in text)


def test_mixed_precision_is_chosen_and_plotted(tmp_path: Path) -> None:
    text = run("examples.mixed_precision", tmp_path)
    assert "mixed: top-1" in text and "bits a chosen weight" in text
    assert (tmp_path / "pareto.png").is_file() == ("\nplot:" in text)


def test_a_recipe_quantizes_a_synthetic_network(tmp_path: Path) -> None:
    text = run("examples.imagenet_recipe", tmp_path, "--config", "W4A8", "--recipe", "gptq")
    assert "W4A8, recipe gptq" in text and "agreement" in text
    assert fxquant.load(tmp_path / "synthetic.fxq").provenance["solver"].startswith("(GPTQ")


def test_graphs_are_written_in_all_forms(tmp_path: Path) -> None:
    text = run("examples.inspect_graphs", tmp_path)
    assert "Basic-Units" in text and "longest path" in text
    ElementTree.parse(tmp_path / "network.svg")
    ElementTree.parse(tmp_path / "network.graphml")
    assert (tmp_path / "network.dot").read_text("utf-8").startswith("digraph")


@pytest.mark.qemu
def test_the_arm_program_equals_the_reference(tmp_path: Path) -> None:
    target = fxquant.targets.CORTEX_A55
    missing = [t for t in (target.compiler, target.emulator) if shutil.which(t) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    text = run("examples.compile_for_arm", tmp_path)
    assert "== reference: True" in text
    assert (tmp_path / "digits.a").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_c_program_equals_the_reference(tmp_path: Path) -> None:
    assert "C program == reference: True" in run("examples.c_program.export", tmp_path)
