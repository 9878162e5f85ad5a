"""The driver: capture -> solve -> apply, unit by unit. The only place that runs the model.

For every unit the driver holds its inputs under the float and under the quantized prefix and its
results in float, for all samples (`ActivationMemory`). Steps that work layer by layer see the
values inside the unit for as many samples as fit the memory. A solved unit becomes part of the
quantized prefix of the units behind it, and is recorded: an interrupted run continues there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule
from tqdm.auto import tqdm

from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ir.batch import bytes_per_sample, channels_last, samples_at_once
from fxquant.ir.units import Unit
from fxquant.solvers.activations import ActivationMemory
from fxquant.solvers.base import (
    LayerSolver,
    Scope,
    Solver,
    UnitProblem,
    UnitSolver,
)
from fxquant.solvers.program import Program, grid_owner
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
        self.samples = [channels_last(s) for s in samples]
        self.on_solved: Callable[[str, Record], None] | None = None
        self.state = NetworkState(gm)
        self.memory = ActivationMemory(options.memory)

    def run(self, steps: Sequence[Solver]) -> Solved:
        groups = passes(steps)
        parts = [self._regions(scope) for scope, _ in groups]
        total = sum(len(program.layers) for part in parts for _, program in part)
        quiet = not self.options.progress
        with tqdm(total=total, desc="solve", unit="layer", disable=quiet) as bar:
            for index, ((_, group), regions) in enumerate(zip(groups, parts, strict=True)):
                self._pass(index, group, regions, bar)
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
        regions: Sequence[tuple[Unit, Program]],
        bar: tqdm,
    ) -> None:
        """One group of steps through the whole network."""
        placeholders = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        floats = {n.name: s for n, s in zip(placeholders, self.samples, strict=True)}
        quantized = dict(floats)
        solved: set[str] = set()
        layerwise = all(isinstance(step, LayerSolver) for step in steps)
        for number, (unit, program) in enumerate(regions):
            key = f"{index}.{number}.{unit.name}"
            record = self.finished.get(key)
            walked = layerwise and record is None and self._fits(program)
            targets = {} if walked else self._advance(program, floats, simulated=False)
            results: dict[str, Tensor] = {}
            if program.layers:
                bar.set_postfix_str(unit.name)
                if record is None:
                    seed = self.options.seed * 1_000_003 + index * 10_007 + number
                    rng = torch.Generator().manual_seed(seed)
                    known = frozenset(solved)
                    if walked:
                        record, targets, results = self._walk_through(
                            program, steps, floats, quantized, rng, known
                        )
                    else:
                        record = self._solve(
                            unit, program, steps, floats, quantized, targets, rng, known
                        )
                    self.finished[key] = record
                    if self.on_solved is not None:
                        self.on_solved(key, record)
                self.state.apply(record)
                solved.update(record.weights)
                bar.update(len(program.layers))
            if number < len(regions) - 1 and not results:
                results = self._advance(program, quantized, simulated=True)
            self._keep(floats, targets, regions[number + 1 :])
            self._keep(quantized, results, regions[number + 1 :])

    def _fits(self, program: Program) -> bool:
        """Whether a walk through a region with layers sees all samples at once."""
        samples = len(self.samples[0])
        return bool(program.layers) and self._interior_samples(program) == samples

    def _walk_through(
        self,
        program: Program,
        steps: Sequence[Solver],
        floats: dict[str, Tensor],
        quantized: dict[str, Tensor],
        rng: torch.Generator,
        solved: frozenset[str],
    ) -> tuple[Record, dict[str, Tensor], dict[str, Tensor]]:
        """Steps that work layer by layer, and both prefixes' results, which they have seen.

        There are no quantized results if grids have changed: that may change scales of layers that
        the walk has passed.
        """
        record = Record()
        walk = self._walk(program, steps, floats, quantized, rng, solved, record)
        targets = self._gathered(program, walk.float_values)
        return record, targets, {} if record.grids else self._gathered(program, walk.values)

    def _gathered(self, program: Program, chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A region's results of all samples."""
        results: dict[str, Tensor] = {}
        for node in program.outputs:
            parts = [values[node.name] for values in chunks]
            shape = (sum(map(len, parts)), *parts[0].shape[1:])
            results[node.name] = self.memory.allocate(shape, parts[0].dtype)
            torch.cat(parts, out=results[node.name])
        return results

    def _walk(
        self,
        program: Program,
        steps: Sequence[Solver],
        floats: dict[str, Tensor],
        quantized: dict[str, Tensor],
        rng: torch.Generator,
        solved: frozenset[str],
        record: Record,
    ) -> Walk:
        """Steps that work layer by layer; solutions go to the record."""
        chunk, inside = self._chunk(program), self._interior_samples(program)
        walk = Walk(self.state, program, solved, chunk, inside)
        walk.run([s for s in steps if isinstance(s, LayerSolver)], floats, quantized, rng, record)
        return walk

    def _advance(
        self, program: Program, values: dict[str, Tensor], simulated: bool
    ) -> dict[str, Tensor]:
        """Run a region on all samples of one prefix."""
        results: dict[str, Tensor] = {}
        hooks = (self.state.parameters, self.state.on_grid) if simulated else (None, None)
        size = self._chunk(program)
        for start in range(0, len(self.samples[0]), size):
            rows = slice(start, start + size)
            inputs = {n.name: values[n.name][rows] for n in program.inputs}
            count = len(next(iter(inputs.values())))
            for name, chunk in program.run(inputs, *hooks).items():
                per_sample = len(chunk) // count  # reshapes may fold other axes into the first
                if name not in results:
                    shape = (len(self.samples[0]) * per_sample, *chunk.shape[1:])
                    results[name] = self.memory.allocate(shape, chunk.dtype)
                results[name][start * per_sample : start * per_sample + len(chunk)] = chunk
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

    def _solve(
        self,
        unit: Unit,
        program: Program,
        steps: Sequence[Solver],
        floats: dict[str, Tensor],
        quantized: dict[str, Tensor],
        targets: dict[str, Tensor],
        rng: torch.Generator,
        solved: frozenset[str],
    ) -> Record:
        """All steps on one unit."""
        record = Record()
        for layerwise, group in _runs(steps):
            if layerwise:
                self._walk(program, group, floats, quantized, rng, solved, record)
                continue
            for step in group:
                assert isinstance(step, UnitSolver)
                problem = self._problem(unit, program, floats, quantized, targets, solved)
                solution = step.solve_unit(problem, rng)
                record.weights.update(solution.weights)
                record.biases.update(solution.biases)
                record.grids.update(solution.grids)
                record.notes.update(solution.notes)
                record.losses[unit.name] = solution.losses
                self.state.apply(record)
        return record

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

    def _problem(
        self,
        unit: Unit,
        program: Program,
        floats: dict[str, Tensor],
        quantized: dict[str, Tensor],
        targets: dict[str, Tensor],
        solved: frozenset[str],
    ) -> UnitProblem:
        gridded = [n for n in program.nodes if meta.quant(n) is not None]
        own = {n.name: meta.qparams(n) for n in gridded if grid_owner(n) is n}
        shared = [grid_owner(n) for n in (*gridded, *program.inputs) if meta.quant(n) is not None]
        fixed = {n.name: meta.qparams(n) for n in shared if n.name not in own}
        names = [n.name for n in program.inputs]
        return UnitProblem(
            unit,
            program,
            {n.name: self.state.layer(n, solved) for n in program.layers},
            own,
            {name: self.state.finest(name) for name in own},
            fixed,
            {name: floats[name] for name in names},
            {name: quantized[name] for name in names},
            targets,
            self.options.batch,
        )


def _runs(steps: Sequence[Solver]) -> Iterator[tuple[bool, list[Solver]]]:
    """Neighbouring steps of a kind: whether they work layer by layer, and the steps."""
    group: list[Solver] = []
    for step in steps:
        if group and isinstance(step, LayerSolver) != isinstance(group[-1], LayerSolver):
            yield isinstance(group[-1], LayerSolver), group
            group = []
        group.append(step)
    yield isinstance(group[-1], LayerSolver), group
