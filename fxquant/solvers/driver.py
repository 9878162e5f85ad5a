"""The driver: capture -> solve -> apply, unit by unit. The only place that runs the model.

For every unit the driver holds its inputs under the float and under the quantized prefix and its
results in float, for all samples (`ActivationMemory`). Steps that work layer by layer see the
values inside the unit for as many samples as fit the memory. A solved unit becomes part of the
quantized prefix of the units behind it, and is recorded: an interrupted run continues there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor
from torch.fx import GraphModule
from tqdm.auto import tqdm

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.batch import bytes_per_sample, channels_last, samples_at_once
from fxquant.ir.device import CPU
from fxquant.ir.units import Unit
from fxquant.solvers.activations import ActivationMemory, span_of
from fxquant.solvers.base import (
    LayerSolver,
    Scope,
    Solver,
    UnitProblem,
    UnitSolver,
)
from fxquant.solvers.program import Program
from fxquant.solvers.regions import regions
from fxquant.solvers.state import NetworkState, Record
from fxquant.solvers.walk import Walk

MEMORY = 4 << 30  # bytes of RAM for cached activations
LAYER_SAMPLES = 512  # for steps that work layer by layer


@dataclass(slots=True)
class Solved:
    """What the driver leaves besides the graph: messages and losses by node name."""

    notes: dict[str, str] = field(default_factory=dict)
    losses: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """How to run the solvers.

    Attributes:
        batch: The only number of samples the graph can run at once, None if any will do.
        seed: Seed of the solvers' randomness.
        memory: Bytes of RAM for cached activations; more go to disk.
        progress: Show a progress bar.
    """

    batch: int | None = None
    seed: int = 0
    memory: int = MEMORY
    progress: bool = True

    def __post_init__(self) -> None:
        for name, value in (("seed", self.seed), ("memory", self.memory)):
            if not isinstance(value, Integral):
                raise ConfigError(
                    f"{name}={value!r} is no whole number", where=name, remedy="pass an int"
                )


@torch.no_grad()
def solve(
    gm: GraphModule,
    samples: Sequence[Tensor],
    steps: Sequence[Solver],
    options: Options = Options(),
    finished: dict[str, Record] | None = None,
    on_solved: Callable[[str, Record], None] | None = None,
) -> Solved:
    """Solve every layer of a graph whose values have grids; `gm` becomes CALIBRATED.

    Args:
        gm: ANNOTATED graph with activation qparams.
        samples: One `[S, ...]` tensor a network input.
        steps: The solvers, applied in order.
        options: How to run them.
        finished: Units solved before; every unit is added to it as soon as it is solved.
        on_solved: Called with every solved unit.

    Raises:
        ConfigError: There are no steps.
    """
    if not steps:
        raise ConfigError("no solver was given", remedy="pass a solver or a tuple of solvers")
    if options.batch is not None:  # an incomplete batch cannot be run
        whole = len(samples[0]) // options.batch * options.batch
        samples = [s[: whole or len(s)] for s in samples]
    driver = _Driver(gm, samples, options, {} if finished is None else finished)
    driver.on_solved = on_solved
    return driver.run(steps)


def passes(steps: Sequence[Solver]) -> list[tuple[Scope, list[Solver]]]:
    """Steps that go through the network together, and the regions they work on.

    Steps that work layer by layer fit any region but the whole network.
    """
    result: list[tuple[Scope | None, list[Solver]]] = []
    for step in steps:
        scope = step.scope if isinstance(step, UnitSolver) else None
        known = result[-1][0] if result else Scope.NETWORK
        if (
            known is Scope.NETWORK
            or (known and scope and known is not scope)
            or (known is None and scope is Scope.NETWORK)
        ):
            result.append((scope, [step]))
        else:
            result[-1] = (known or scope, [*result[-1][1], step])
    return [(scope or Scope.UNIT, group) for scope, group in result]


@dataclass(slots=True, eq=False)
class _Region:
    """A region of the network in a pass.

    Attributes:
        unit: The region.
        program: The same, to run.
        floats: Values before it in the float network, by name.
        quantized: The same behind the quantized prefix.
        solved: Names of weights that must not change any more.
        rng: Its randomness.
        report: See UnitProblem.
        targets: Its results in the float network, once known.
        results: Its results behind the quantized prefix, once known.
    """

    unit: Unit
    program: Program
    floats: dict[str, Tensor]
    quantized: dict[str, Tensor]
    solved: frozenset[str]
    rng: torch.Generator
    report: Callable[[int, int], None]
    targets: dict[str, Tensor] | None = None
    results: dict[str, Tensor] | None = None


class _Report:
    """Moves the progress bar through a region, so that its time left goes by in long ones, too.

    Args:
        bar: Counts layers.
        name: Of the region.
        layers: Its layers.
    """

    def __init__(self, bar: tqdm, name: str, layers: int) -> None:
        self.bar, self.name, self.start, self.layers = bar, name, bar.n, layers

    def __call__(self, done: int, total: int) -> None:
        """As UnitProblem says; a second solver in the region does not go back."""
        self._move(round(self.start + self.layers * done / total, 1))
        self.bar.set_postfix_str(f"{self.name} {done}/{total}")

    def finish(self) -> None:
        """The region is solved."""
        self._move(self.start + self.layers)
        self.bar.n = self.start + self.layers  # a whole number again

    def _move(self, to: float) -> None:
        self.bar.update(max(to - self.bar.n, 0))


class _Driver:
    """Runs both prefixes through the graph, once for every group of steps."""

    def __init__(
        self,
        gm: GraphModule,
        samples: Sequence[Tensor],
        options: Options,
        finished: dict[str, Record],
    ) -> None:
        self.gm, self.options, self.finished = gm, options, finished
        self.state = NetworkState(gm)
        self.samples = [channels_last(s.to(self.state.device)) for s in samples]
        self.on_solved: Callable[[str, Record], None] | None = None
        self.memory = ActivationMemory(options.memory)

    def run(self, steps: Sequence[Solver]) -> Solved:
        groups = passes(steps)
        parts = [self._regions(scope) for scope, _ in groups]
        total = sum(len(program.layers) for part in parts for _, program in part)
        quiet = not self.options.progress
        with tqdm(total=total, desc="solve", unit="layer", disable=quiet) as bar:
            for index, ((_, group), own) in enumerate(zip(groups, parts, strict=True)):
                self._pass(index, group, own, bar)
        self.state.store()
        return Solved(self.state.notes, self.state.losses)

    def _regions(self, scope: Scope) -> list[tuple[Unit, Program]]:
        parts = regions(self.gm, scope)
        nodes = self.state.nodes
        return [(u, Program(self.gm, [nodes[name] for name in u.nodes])) for u in parts]

    def _pass(
        self,
        index: int,
        steps: Sequence[Solver],
        parts: Sequence[tuple[Unit, Program]],
        bar: tqdm,
    ) -> None:
        """One group of steps through the whole network."""
        placeholders = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        floats = {n.name: s for n, s in zip(placeholders, self.samples, strict=True)}
        quantized = dict(floats)
        solved: set[str] = set()
        for number, (unit, program) in enumerate(parts):
            seed = int(self.options.seed) * 1_000_003 + index * 10_007 + number
            rng = torch.Generator().manual_seed(seed % (1 << 64))

            report = _Report(bar, unit.name, len(program.layers))
            region = _Region(unit, program, floats, quantized, frozenset(solved), rng, report)
            if taking_part := _taking_part(steps, program):
                bar.set_postfix_str(unit.name)
                key = f"{index}.{number}.{unit.name}"
                record = self.finished.get(key)
                if record is None:
                    record = self.finished[key] = self._solve(region, taking_part).to(CPU)
                    if self.on_solved is not None:
                        self.on_solved(key, record)
                self.state.apply(record.to(self.state.device))
                solved.update(record.weights)
                report.finish()
            targets, rest = self._targets(region), parts[number + 1 :]
            if rest and region.results is None:
                region.results = self._advance(program, quantized, simulated=True)
            self._keep(floats, targets, rest)
            self._keep(quantized, region.results or {}, rest)

    def _targets(self, region: _Region) -> dict[str, Tensor]:
        """The region's results in the float network."""
        if region.targets is None:
            region.targets = self._advance(region.program, region.floats, simulated=False)
        return region.targets

    def _advance(
        self, program: Program, values: dict[str, Tensor], simulated: bool
    ) -> dict[str, Tensor]:
        """Run a region on all samples of one prefix."""
        results: dict[str, Tensor] = {}
        hooks = (self.state.parameters, self.state.on_grid) if simulated else (None, None)
        size, total = self._chunk(program), len(self.samples[0])
        for start in range(0, total, size):
            stop = min(start + size, total)
            inputs = {
                n.name: span_of(values[n.name], start, stop, total).to(self.state.device)
                for n in program.inputs
            }
            for name, chunk in program.run(inputs, *hooks).items():
                rows = torch.atleast_1d(chunk)
                if name not in results:
                    shape = (len(rows) * total // (stop - start), *rows.shape[1:])
                    results[name] = self.memory.allocate(shape, rows.dtype)
                span_of(results[name], start, stop, total)[:] = rows
        return results

    def _keep(
        self,
        values: dict[str, Tensor],
        results: dict[str, Tensor],
        rest: Sequence[tuple[Unit, Program]],
    ) -> None:
        """Add a region's results, drop what nobody reads any more."""
        values.update(results)
        needed = {n.name for _, program in rest for n in program.inputs}
        for name in [n for n in values if n not in needed]:
            self.memory.free(values.pop(name))

    def _solve(self, region: _Region, steps: Sequence[Solver]) -> Record:
        """All steps on one region; what they have seen of its results stays with it."""
        record, walk = Record(), None
        for layerwise, group in _runs(steps):
            if layerwise:
                walk = self._walk(region, group, record)
                continue
            walk = None
            for step in group:
                assert isinstance(step, UnitSolver)
                solution = step.solve_unit(self._problem(region), region.rng)
                record.weights.update(solution.weights)
                record.biases.update(solution.biases)
                record.grids.update(solution.grids)
                record.notes.update(solution.notes)
                record.losses[region.unit.name] = solution.losses
                self.state.apply(record)
        # A changed grid may change scales of layers that the walk has passed.
        if walk is not None and self._saw_all(walk) and not record.grids:
            region.results = self._gathered(region.program, walk.values)
        return record

    def _walk(self, region: _Region, steps: Sequence[Solver], record: Record) -> Walk:
        """Steps that work layer by layer; solutions go to the record."""
        program = region.program
        inside = self._interior_samples(program)
        total = len(self.samples[0])
        walk = Walk(self.state, program, region.solved, self._chunk(program), inside, total)
        layerwise = [s for s in steps if isinstance(s, LayerSolver)]
        walk.run(layerwise, region.floats, region.quantized, region.rng, record)
        if region.targets is None and self._saw_all(walk):
            region.targets = self._gathered(program, walk.float_values)
        return walk

    def _saw_all(self, walk: Walk) -> bool:
        """Whether a walk had all samples, not just those whose inner values fit the memory."""
        return walk.samples == len(self.samples[0])

    def _gathered(self, program: Program, chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A region's results, of all chunks of samples."""
        results: dict[str, Tensor] = {}
        for node in program.outputs:
            parts = [torch.atleast_1d(values[node.name]) for values in chunks]
            sizes = [len(part) for part in parts]
            shape = (sum(sizes), *parts[0].shape[1:])
            results[node.name] = self.memory.allocate(shape, parts[0].dtype)
            for place, part in zip(results[node.name].split(sizes), parts, strict=True):
                place.copy_(part)
        return results

    def _chunk(self, program: Program) -> int:
        """Samples run through a region at once."""
        return self.options.batch or samples_at_once((*program.nodes, *program.inputs))

    def _interior_samples(self, program: Program) -> int:
        """How many samples of a unit's inner values fit the memory, under both prefixes."""
        chunk = self._chunk(program)
        inside = sum(bytes_per_sample(n) for n in (*program.nodes, *program.inputs))
        free = max(self.options.memory - self.memory.used, self.options.memory // 4)
        fitting = free // max(2 * inside, 1) // chunk * chunk
        return min(len(self.samples[0]), LAYER_SAMPLES, max(fitting, chunk))

    def _problem(self, region: _Region) -> UnitProblem:
        program = region.program
        own = {n.name: meta.qparams(n) for n in program.gridded}
        shared = [
            meta.grid_owner(n)
            for n in (*program.nodes, *program.inputs)
            if meta.quant(n) is not None
        ]
        fixed = {n.name: meta.qparams(n) for n in shared if n.name not in own}
        names = [n.name for n in program.inputs]
        return UnitProblem(
            region.unit,
            program,
            {n.name: self.state.layer(n, region.solved) for n in program.layers},
            own,
            {name: self.state.finest(name) for name in own},
            fixed,
            {name: region.floats[name] for name in names},
            {name: region.quantized[name] for name in names},
            self._targets(region),
            len(self.samples[0]),
            self.options.batch,
            region.report,
        )


def _taking_part(steps: Sequence[Solver], program: Program) -> Sequence[Solver]:
    """The steps that find something to solve in a region: without layers, those that take grids."""
    layerwise = [s for s in steps if isinstance(s, LayerSolver)]
    return steps if program.layers else layerwise if program.gridded else ()


def _runs(steps: Sequence[Solver]) -> Iterator[tuple[bool, list[Solver]]]:
    """Neighbouring steps of a kind: whether they work layer by layer, and the steps."""
    group: list[Solver] = []
    for step in steps:
        if group and isinstance(step, LayerSolver) != isinstance(group[-1], LayerSolver):
            yield isinstance(group[-1], LayerSolver), group
            group = []
        group.append(step)
    yield isinstance(group[-1], LayerSolver), group
