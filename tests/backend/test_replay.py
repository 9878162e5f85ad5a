"""Files of schedules: compiling with them, and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tvm_backend
from fxquant import targets
from fxquant.errors import ConfigError, FileFormatError, FxQuantError
from tests.backend.integer_nets import residual_net
from tests.backend.kernel_harness import require
from tvm_backend.kernel import Abi
from tvm_backend.lower import lower
from tvm_backend.program import Program, Step
from tvm_backend.tuning import Database, Machine, problems, replay, without_variants
from tvm_backend.tuning.database import Entry

TARGET, MACHINE = targets.X86_AVX2, Machine("imaginary", 1)


def program(target: targets.Target = TARGET) -> Program:
    return lower(residual_net()[0], target)


def write(path: Path, position: int, skip: int = 0, target: targets.Target = TARGET) -> Database:
    """A file that chooses the schedule at a position, but for the first `skip` problems."""
    database = Database.open(path, target, MACHINE)
    for problem in problems(program(target))[skip:]:
        best = problem.variants.ranked()[position].name
        database.put(Entry(problem.name, problem.variants.default, 5e3, best, 0.9, {best: 0.9}))
    return database


def sources(made: Program) -> list[object]:
    """All code and all constants."""
    kernels = [step.kernel for step in made.steps if isinstance(step, Step)]
    return [
        (k.name, k.build(Abi.BARE).script(), [(c.dtype, c.tobytes()) for c in k.constants])
        for k in kernels
    ]


def test_replay_is_deterministic(tmp_path: Path) -> None:
    write(tmp_path / "t", 2)
    database = Database.read(tmp_path / "t", TARGET)
    first, second = (sources(replay(program(), database)[0]) for _ in range(2))
    assert first == second != sources(program())
    for problem in problems(program()):
        tile, _, idiom = database.entries[problem.name].best.partition("__")  # type: ignore[union-attr]
        assert any(f"_{tile}" in str(s[0]) and str(s[0]).endswith(idiom) for s in first)  # type: ignore[index]


def test_the_default_schedule_changes_nothing(tmp_path: Path) -> None:
    replayed, _ = replay(program(), write(tmp_path / "t", 0))
    assert sources(replayed) == sources(program()) == sources(without_variants(replayed))
    assert not problems(without_variants(replayed))


@pytest.mark.parametrize("position", [1, -1])
def test_results_do_not_depend_on_schedules(tmp_path: Path, position: int) -> None:
    require(TARGET)
    graph, x = residual_net()
    write(tmp_path / "t", position)
    compiled = tvm_backend.compile(graph, TARGET, threads=1, tuned=tmp_path / "t")
    assert torch.equal(compiled(x), graph(x))


def test_layers_without_an_entry_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "t", 1, skip=1)
    found = problems(program())
    made, report = replay(program(), Database.read(tmp_path / "t", TARGET))
    assert report.untuned == found[0].nodes and len(report.tuned) == 3
    assert str(report).startswith("3 of 4 layers") and found[0].nodes[0] in str(report)
    assert sources(made)[1] == sources(program())[1]  # the first convolution
    undecided = Database.open(tmp_path / "u", TARGET, MACHINE)
    undecided.put(Entry(found[0].name, found[0].variants.default, 5e3))
    assert not replay(program(), undecided)[1].tuned


def test_files_for_devices_this_machine_is_not(tmp_path: Path) -> None:
    target = targets.CORTEX_A53
    write(tmp_path / "t", 1, target=target)
    compiled = tvm_backend.compile(residual_net()[0], target, tuned=tmp_path / "t")
    assert compiled.replayed is not None and not compiled.replayed.untuned
    assert tvm_backend.compile(residual_net()[0], target).replayed is None


def test_a_schedule_that_does_not_exist(tmp_path: Path) -> None:
    database = write(tmp_path / "t", 1)
    problem = problems(program())[0]
    database.put(Entry(problem.name, problem.variants.default, 5e3, "t8x8x8p__pmaddwd_256", 0.9))
    with pytest.raises(ConfigError, match="t8x8x8p__pmaddwd_256") as caught:
        tvm_backend.compile(residual_net()[0], TARGET, tuned=tmp_path / "t")
    assert problem.name in caught.value.where and "remove the line" in caught.value.remedy


def test_files_of_other_targets_and_machines(tmp_path: Path) -> None:
    write(tmp_path / "t", 1)
    with pytest.raises(ConfigError, match=r"another target.*\n.*'x86_avx2'"):
        tvm_backend.compile(residual_net()[0], targets.GENERIC, tuned=tmp_path / "t")
    with pytest.raises(ConfigError, match="cannot be continued here"):
        Database.open(tmp_path / "t", TARGET, Machine("imaginary", 2))
    with pytest.raises(FileFormatError, match=r"absent cannot be read\n.*No such file"):
        tvm_backend.compile(residual_net()[0], TARGET, tuned=tmp_path / "absent")


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "t", 3)
    read = Database.read(tmp_path / "t", TARGET)
    assert read.entries == written.entries and read.machine == MACHINE
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    lines = (tmp_path / "t").read_text().splitlines()
    assert len(lines) == 1 + len(read.entries)


def _lines(path: Path) -> list[str]:
    write(path, 1)
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (0, {"format": "other"}), (0, {"version": 2}), (0, {"version": None}), (0, {"cpu": 3}),
        (0, {"threads": "1"}), (0, {"target": "x86_avx2"}), (1, {"problem": 3}),
        (1, {"best": 7}), (1, {"ratio": -1}), (1, {"ratio": "1"}), (1, {"tried": [1]}),
        (1, {"tried": {"t1x1x1p__x": None}}), (1, {"default_ns": float("nan")}),
        (1, {"default_ns": True}), (1, {"default_ns": 10**400}), (0, {"version": True}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, line: int, change: dict) -> None:
    lines = _lines(tmp_path / "t")
    lines[line] = json.dumps(json.loads(lines[line]) | change)
    (tmp_path / "t").write_text("\n".join(lines))
    with pytest.raises((FileFormatError, ConfigError)) as caught:
        Database.read(tmp_path / "t", TARGET)
    assert isinstance(caught.value, FxQuantError) and caught.value.remedy


@pytest.mark.parametrize("text", [b"", b"\xff\n", b"[]", b"{}", b"[" * 9999, b"\n\n"], ids=len)
def test_files_of_something_else(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t").write_bytes(text)
    with pytest.raises(FileFormatError):
        Database.read(tmp_path / "t", TARGET)


def test_a_truncated_line_is_named(tmp_path: Path) -> None:
    lines = _lines(tmp_path / "t")
    (tmp_path / "t").write_text("\n".join([*lines[:2], lines[2][:40]]))
    with pytest.raises(FileFormatError, match="line 3"):
        Database.read(tmp_path / "t", TARGET)
    record = json.loads(lines[1])
    del record["best"]
    (tmp_path / "t").write_text(f"{lines[0]}\n{json.dumps(record)}\n")
    with pytest.raises(FileFormatError, match="line 2"):
        Database.read(tmp_path / "t", TARGET)
