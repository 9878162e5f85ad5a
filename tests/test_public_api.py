"""What `import fxquant` offers: exactly this, documented and typed."""

from __future__ import annotations

import inspect

import pytest

import fxquant
import tvm_backend
from fxquant import errors, targets

FUNCTIONS = {"prepare", "calibrate", "convert", "quantize", "preset"}
PRESETS = {"W8A8", "W7A7", "W6A6", "W4A8", "W4A4", "W3A8", "W3A3", "W2A8", "W2A4"}
REQUIRED = FUNCTIONS | PRESETS | {
    "Config", "OpConfig", "Prepared", "Quantized", "FloatIsland", "FxQuantError",
    "MinMax", "MovingAverage", "Percentile", "Mse", "Entropy",
    "errors", "recipes", "solvers", "targets", "__version__",
}  # fmt: skip


def test_names() -> None:
    assert set(fxquant.__all__) >= REQUIRED
    assert len(set(fxquant.__all__)) == len(fxquant.__all__)
    for name in fxquant.__all__:
        assert getattr(fxquant, name) is not None


def test_nothing_else_is_public_by_accident() -> None:
    """Names without an underscore are exported or submodules."""
    for name, value in vars(fxquant).items():
        if not name.startswith("_") and not inspect.ismodule(value):
            assert name in fxquant.__all__, name


@pytest.mark.parametrize("name", sorted(set(fxquant.__all__) - {"__version__"}))
def test_every_name_is_documented(name: str) -> None:
    value = getattr(fxquant, name)
    if name not in PRESETS:
        assert inspect.getdoc(value)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_are_typed(name: str) -> None:
    signature = inspect.signature(getattr(fxquant, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter


def test_signatures_users_rely_on() -> None:
    def names(function) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(fxquant.prepare)[:4] == ["model", "example_inputs", "config", "target"]
    assert names(fxquant.calibrate)[:3] == ["prepared", "data", "solver"]
    assert names(fxquant.convert) == ["prepared"]
    assert names(fxquant.quantize)[:6] == [
        "model", "data", "example_inputs", "config", "solver", "target"
    ]  # fmt: skip


def test_the_backend() -> None:
    assert set(tvm_backend.__all__) == {
        "Compiled", "Replayed", "Tuned", "TunedLayer", "compile", "host_target", "load", "tune"
    }  # fmt: skip
    parameters = list(inspect.signature(tvm_backend.compile).parameters)
    assert parameters == ["quantized", "target", "threads", "tuned", "progress", "winograd"]
    parameters = list(inspect.signature(tvm_backend.tune).parameters)
    assert parameters == [
        "quantized", "path", "target", "trials", "time_limit", "threads", "progress"
    ]  # fmt: skip


def test_errors_form_one_tree_and_say_what_to_do() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    assert all(issubclass(c, errors.FxQuantError) for c in classes)
    assert issubclass(errors.ConfigError, ValueError)
    error = errors.CaptureError("what", where="here", why="because", remedy="do")
    assert str(error) == "what\n  where: here\n  why: because\n  remedy: do"
    assert str(errors.CaptureError("what")) == "what"


@pytest.mark.parametrize("target", targets.ALL, ids=str)
def test_targets_are_plain_hashable_data(target: targets.Target) -> None:
    assert hash(target) == hash(target) and getattr(targets, target.name.upper()) is target
    assert target.mac.lanes * 32 <= target.vector_bits
    assert target.mac.storage in ("int8", "uint8")
    assert target.mac.offset == (-128 if target.mac.signed_activations else 0)
    assert target.is_x86 or target is targets.GENERIC or target.emulator


def test_target_names_are_unique_and_invalid_ones_refused() -> None:
    assert len({t.name for t in targets.ALL}) == len(targets.ALL)
    for name, bits in (("", 128), ("x", 100)):
        with pytest.raises(errors.TargetError, match="invalid"):
            targets.Target(name, (), targets.GENERIC.mac, bits)


def test_presets_mean_what_they_say() -> None:
    for name in PRESETS:
        default = getattr(fxquant, name).default
        assert name == f"W{default.weight_bits}A{default.activation_bits}"
