"""inspect, analyze, tune, compile, run, bench and export on one quantized network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxquant
from fxquant.cli.run import leaves
from tests.cli.conftest import MODEL, Run


def test_inspect_a_quantized_network(run: Run, net: Path) -> None:
    text, described = run("inspect", net).out, run("inspect", net, "--json").json
    assert "nothing stays in float" in text and "stages: calibrated" in text
    assert described["stages"].keys() == {"calibrated", "qdq", "integer"}
    rows = {row["node"]: row for row in described["nodes"]}
    assert rows["stem"]["weight"] == "8 bits" and rows["stem"]["module"] == "stem"
    assert {n for u in described["units"] for n in u["nodes"]} == rows.keys() - {"x"}


def test_inspect_a_model_before_quantization(run: Run) -> None:
    done = run("inspect", "tests.cli.nets:Odd", "--shape", "1x3x4x4", "--json")
    assert done.json["stages"].keys() == {"float", "fused", "annotated"}
    assert done.json["float_islands"][0]["reason"] == "softmax has no integer form"
    assert "[num_users" in run("inspect", MODEL, "--shape", "1,3,8,8", "--stage", "fused").out


def test_inspect_a_model_with_two_inputs(run: Run) -> None:
    shapes = ("--shape", "1,3,4,4", "--shape", "1,3")
    done = run("inspect", "tests.cli.nets:TwoInputs", *shapes, "--json")
    assert {row["node"]: row["shape"] for row in done.json["nodes"]}["scale"] == "1x3"


def test_stages_that_a_network_does_not_have(run: Run, net: Path) -> None:
    assert "_accumulate" in run("inspect", net, "--stage", "integer").out
    done = run("inspect", net, "--stage", "fused")
    assert done.code == 1 and "calibrated, qdq, integer" in done.err


def test_analyze(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    done = run("analyze", net, "--data", data, "--model", MODEL, "--sensitivity", "2,8",
               "--html", tmp_path / "r.html", "--json")  # fmt: skip
    assert done.code == 0 and (tmp_path / "r.html").stat().st_size > 1000
    assert all(row["isolated_sqnr"] is None or row["isolated_sqnr"] > 20
               for row in done.json["layers"])  # fmt: skip
    (layer,) = done.json["sensitivity"]
    assert layer["layer"] == "body" and layer["noise"]["2"] > 10 * layer["noise"]["8"]
    text = run("analyze", net, "--data", data).out
    assert "cumulative dB" in text and "--model" in text


def test_analyze_sensitivity_needs_the_model(run: Run, net: Path, data: Path) -> None:
    done = run("analyze", net, "--data", data, "--sensitivity", "2,8")
    assert done.code == 1 and "--model" in done.err


@pytest.fixture(scope="module")
def folder(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tvm")
    path = tmp_path_factory.mktemp("compiled") / "tiny"
    assert fxquant.cli.main(["compile", str(net), "--output", str(path)]) == 0
    return path


def test_compile(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} >= {"net.so", "manifest.json"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), True),
        (("--no-winograd",), False),
        (("--form", "standalone"), False),
        (("--form", "standalone", "--winograd"), True),
    ],
    ids=str,
)
def test_winograd_kernels_are_an_option(
    run: Run, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], expected: bool,
) -> None:  # fmt: skip
    """Weights up to 8 times as large are unwelcome on small devices."""
    backend = pytest.importorskip("tvm_backend")
    given, real = [], backend.compile

    def compile(*arguments: Any, winograd: bool, **keywords: Any) -> Any:
        given.append(winograd)
        return real(*arguments, winograd=winograd, **keywords)

    monkeypatch.setattr(backend, "compile", compile)
    assert run("compile", net, "--output", tmp_path / "out", *options).code == 0
    assert given == [expected]


def test_tune_and_compile_with_what_was_found(run: Run, net: Path, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    tuned, build = tmp_path / "tuned", ("--output", tmp_path / "net")
    done = run("tune", net, "--output", tuned, "--trials", 1, "--threads", 1, "--json")
    assert done.code == 0 and not done.json["undecided"]
    assert {node for layer in done.json["layers"] for node in layer["nodes"]} == {
        "stem", "body", "head_accumulate"
    }  # fmt: skip
    again = run("tune", net, "--output", tuned, "--trials", 1, "--threads", 1)
    assert again.code == 0 and "without a search the cost model" in again.out
    done = run("compile", net, "--tuned", tuned, *build)
    assert done.code == 0 and "3 of 3 layers" in done.out
    assert run("compile", net, "--tuned", tuned, *build, "--json").json["untuned"] == []
    tuned.write_text("{}")
    assert "no file of tuned schedules" in run("compile", net, "--tuned", tuned, *build).err
    assert run("tune", net, "--output", tuned, "--target", "armv7_neon").code == 1


@pytest.mark.parametrize("engine", ["compiled", "reference", "folder"])
def test_run(engine: str, run: Run, net: Path, folder: Path, data: Path, tmp_path: Path) -> None:
    network = (folder,) if engine == "folder" else (net, "--engine", engine)
    done = run("run", network[0], data, *network[1:], "--output", tmp_path / "y.npy", "--json")
    assert done.code == 0 and done.json["outputs"][0]["shape"] == [16, 5]
    expected = fxquant.load(net).reference(torch.from_numpy(np.load(data)))
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected.numpy())


def test_results_are_named_by_their_place() -> None:
    y, z = torch.zeros(2), torch.ones(3)
    found = leaves({"scores": [y, None], "count": 3, "boxes": z})
    assert found.keys() == {"output.scores.0", "output.boxes"}
    assert leaves(y).keys() == {"output"}


def test_run_on_raw_floats(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    np.load(data).tofile(tmp_path / "x.bin")
    reference = (net, tmp_path / "x.bin", "--engine", "reference")
    assert run("run", *reference, "--output", tmp_path / "y.bin").code == 0
    assert (tmp_path / "y.bin").stat().st_size == 16 * 5 * 4
    assert "largest of the first sample" in run("run", *reference).out
    (tmp_path / "x.bin").write_bytes(b"\0" * 7)
    assert run("run", *reference).code == 1


@pytest.mark.qemu
def test_run_under_the_emulator(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(data)[:1])
    output = tmp_path / "y.npy"
    done = run("run", net, tmp_path / "x.npy", "--target", "cortex_a55", "--output", output)
    assert done.code == 0
    expected = fxquant.load(net).reference(torch.from_numpy(np.load(data)[:1]))
    assert np.array_equal(np.load(output), expected.numpy())


def test_bench(run: Run, folder: Path) -> None:
    done = run("bench", folder, "--threads", 1, "--rounds", 3, "--warmup", 1, "--json")
    (row,) = done.json["latency"]
    assert done.code == 0 and 0 < row["min_ms"] <= row["median_ms"] and row["threads"] == 1
    assert "median ms" in run("bench", folder, "--threads", 1, "--rounds", 1).out


def test_export(run: Run, net: Path, data: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    done = run("export", net, "--onnx", tmp_path / "a.onnx", "--data", data, "--json")
    assert done.code == 0
    onnx.checker.check_model(done.json["onnx"])
    assert fxquant.load(net).export_onnx(tmp_path / "b.onnx").is_file()
