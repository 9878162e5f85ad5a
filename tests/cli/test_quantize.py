"""`fxquant quantize`: models, data, precision, recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fxquant
from fxquant.recipes import RECIPES, recipe
from fxquant.solvers import Equalization, Solver
from tests.cli.conftest import MODEL, Run
from tests.cli.nets import tiny


def weight_bits(path: Path) -> dict[str, int]:
    nodes = fxquant.load(path).calibrated.graph.nodes
    weights = [n for n in nodes if n.op == "get_attr" and "quant" in n.meta]
    return {n.name.removesuffix("_weight"): n.meta["quant"].spec.dtype.bits for n in weights}


def test_the_file_is_what_the_library_makes(data: Path, net: Path) -> None:
    x = torch.from_numpy(np.load(data))
    expected = fxquant.quantize(tiny(), [x], x[:1], progress=False)
    assert torch.equal(fxquant.load(net).reference(x), expected.reference(x))


def test_json_and_provenance(run: Run, data: Path, tmp_path: Path) -> None:
    done = run("quantize", MODEL, "--data", data, "--output", tmp_path / "a.fxq", "--target",
               "cortex_a55", "--config", "W4A8", "--recipe", "rtn-mse", "--json")  # fmt: skip
    assert done.code == 0 and done.json["integer"] == done.json["operators"]
    assert done.json["weight_bits"] == "4 (1), 8 (2)"
    loaded = fxquant.load(done.json["output"])
    assert loaded.provenance["target"] == "cortex_a55"
    assert "RoundToNearest" in loaded.provenance["solver"]


def test_bits_of_single_layers(run: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.fxq"
    done = run("quantize", MODEL, "--data", data, "--output", path, "--bits", "body=3", "--bits",
               "head=float", "--recipe", "rtn-mse")  # fmt: skip
    assert done.code == 0 and "float: head" in done.out
    assert weight_bits(path) == {"stem": 8, "body": 3}


def test_bits_on_average(run: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.fxq"
    done = run(
        "quantize", MODEL, "--data", data, "--output", path, "--bits", 4, "--recipe", "rtn-mse"
    )
    assert done.code == 0
    assert weight_bits(path) == {"stem": 8, "body": 4, "head": 8}


def test_an_exported_program_keeps_its_batch(run: Run, data: Path, tmp_path: Path) -> None:
    program = torch.export.export(tiny(), (torch.zeros(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "tiny.pt2")
    output = tmp_path / "a.fxq"
    done = run("quantize", tmp_path / "tiny.pt2", "--data", data, "--output", output)
    assert done.code == 0
    x = torch.from_numpy(np.load(data))
    expected = fxquant.quantize(tiny(), [x], x[:1], progress=False).reference(x)
    torch.testing.assert_close(fxquant.load(output).reference(x), expected, atol=0.05, rtol=0)


def test_an_onnx_model(run: Run, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from fxquant.onnx import export_onnx

    x = torch.from_numpy(np.load(data))
    plain = fxquant.quantize(tiny(), [x], x[:1], fxquant.Config(None), progress=False)
    export_onnx(plain, tmp_path / "tiny.onnx")
    output = tmp_path / "a.fxq"
    assert run("quantize", tmp_path / "tiny.onnx", "--data", data, "--output", output).code == 0
    expected = fxquant.quantize(tiny(), [x], x[:1], progress=False).reference(x)
    torch.testing.assert_close(fxquant.load(output).reference(x), expected, atol=0.05, rtol=0)


def images(folder: Path, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(0)
    for i in range(6):
        (folder / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        image.save(folder / "images" / str(i % 2) / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder / "images"


def test_a_folder_of_images(run: Run, tmp_path: Path) -> None:
    folder = images(tmp_path)
    done = run("quantize", MODEL, "--data", folder, "--size", 8, "--resize", 10, "--mean",
               "0.5,0.4,0.3", "--std", "0.2", "--samples", 5, "--output", tmp_path / "a.fxq",
               "--json")  # fmt: skip
    assert done.code == 0 and done.json["provenance"]["samples"] == 5


def test_grey_images(run: Run, tmp_path: Path) -> None:
    """The exported program says that there is one channel, and the size."""
    program = torch.export.export(
        fxquant.cli.models.read_model("tests.cli.nets:grey").model, (torch.zeros(1, 1, 8, 8),)
    )
    torch.export.save(program, tmp_path / "grey.pt2")
    done = run("quantize", tmp_path / "grey.pt2", "--data", images(tmp_path, "L"), "--output",
               tmp_path / "a.fxq")  # fmt: skip
    assert done.code == 0


def test_an_npz_with_one_array_an_input(run: Run, data: Path, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.load(data).astype(np.float64))
    done = run("quantize", MODEL, "--data", tmp_path / "x.npz", "--output", tmp_path / "a.fxq",
               "--batch", 3, "--json")  # fmt: skip
    assert done.code == 0 and done.json["provenance"]["samples"] == 16


def test_interrupted_runs_go_on(run: Run, data: Path, tmp_path: Path) -> None:
    command = ("quantize", MODEL, "--data", data, "--config", "W3A8", "--recipe", "gptq",
               "--checkpoint", tmp_path / "units", "--output")  # fmt: skip
    assert run(*command, tmp_path / "a.fxq").code == 0
    assert list((tmp_path / "units").iterdir())
    assert run(*command, tmp_path / "b.fxq").code == 0
    assert (tmp_path / "a.fxq").read_bytes() == (tmp_path / "b.fxq").read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_steps(name: str) -> None:
    steps = recipe(name)
    assert (steps is None) == (name == "default")
    assert steps is None or all(isinstance(s, Solver | Equalization) for s in steps)


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(fxquant.errors.ConfigError, match="choose of"):
        recipe("magic")
