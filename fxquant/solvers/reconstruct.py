"""THE training loop: all learned solvers reconstruct a region with it.

Problem: choose codes, scales, biases and activation scales of a region so that its results come
close to those of the float network, on the inputs it has behind the quantized prefix:

    min  E || f_q(x; q, s, b, a) - f(x_float) ||^2 / E || f(x_float) - mean ||^2

Every parameter is trained in units in which steps mean the same in all layers:

    w_q = s * exp(theta) * q(v)       v in codes, theta relative
    b   = b_0 + beta * sigma          sigma: one part in 64 of the result's range
    a   = a_0 * exp(phi)              step of an activation, relative

Adam with a cosine schedule to zero. The best iterate counts, judged by the loss of the hardened
region on held-back samples; the start is among the candidates, so nothing gets worse there. The
same samples (the last ones) are held back in all regions: judged on samples that an earlier region
was trained on, the start would look too good.

Input mixing (QDrop: Wei et al., ICLR 2022): each element of the input comes from the quantized
prefix with probability `mix`, else from the float network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.solvers.augment import augmented
from fxquant.solvers.base import Scope, UnitProblem, UnitSolution, UnitSolver
from fxquant.solvers.crop import find_crop
from fxquant.solvers.rounding import Rounding, StraightThrough
from fxquant.solvers.squared_error import mean_squared_error
from fxquant.solvers.trainable import Trainable

_REPORTS = 10  # iterations between words on how far it is


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of the loop.

    Attributes:
        iterations: Steps of Adam.
        batch: Samples a step, at most.
        window: Sides of the windows that large maps are trained on; see crop.py.
        positions: Positions a step: maps larger than this get smaller batches.
        code_rate: Learning rate of the rounding variables, in codes.
        scale_rate: Of the weight scales, relative; 0 keeps them.
        bias_rate: Of the biases, in units of 1/64 of the result's range; 0 keeps them.
        activation_rate: Of the activation scales, relative; 0 keeps them.
        mix: Probability that an input element is the quantized one; 1 does not mix.
        drop: Probability that an element inside the region is not rounded to its grid.
        held_back: Samples kept for judging the iterates, at most a quarter of all. Without any, the
            last iterate counts.
        judgements: How often the iterates are judged.
        loss: "mse" of the results, or "kl" of their softmax (classifier logits).
        augment: Make new images of the samples for every step; see augment.py. Only where a region
            reads nothing but images that are inputs of the network.
    """

    iterations: int = 300
    batch: int = 32
    window: int = 32
    positions: int = 16384
    code_rate: float = 1e-2
    scale_rate: float = 1e-3
    bias_rate: float = 5e-2
    activation_rate: float = 1e-3
    mix: float = 1.0
    drop: float = 0.0
    held_back: int = 64
    judgements: int = 5
    loss: Literal["mse", "kl"] = "mse"
    augment: bool = False

    def __post_init__(self) -> None:
        counts = ("iterations", "batch", "window", "positions", "judgements")
        rates = ("code_rate", "scale_rate", "bias_rate", "activation_rate")
        wrong = [name for name in counts if getattr(self, name) < 1]
        wrong += [name for name in (*rates, "held_back") if getattr(self, name) < 0]
        wrong += [name for name in ("mix", "drop") if not 0 <= getattr(self, name) <= 1]
        wrong += [] if self.loss in ("mse", "kl") else ["loss"]
        wrong += [] if any(getattr(self, name) > 0 for name in rates) else ["code_rate"]
        if wrong:
            raise ConfigError(
                f"Training has an invalid {wrong[0]}: {getattr(self, wrong[0])}",
                remedy="counts are at least 1, rates at least 0 and one above, probabilities in "
                "[0, 1], the loss is 'mse' or 'kl'",
            )


@dataclass(frozen=True, slots=True)
class Reconstruction(UnitSolver):
    """A learned solver: the loop with its settings. Subclasses are named settings.

    Attributes:
        training: Settings of the loop.
        region: What is trained at once: Basic-Units, single layers or the network.
        rounding: How codes move.
    """

    training: Training = Training()
    region: Scope = Scope.UNIT
    rounding: Rounding = StraightThrough()

    @property
    def scope(self) -> Scope:
        """As given by `region`."""
        return self.region

    def solve_unit(self, problem: UnitProblem, rng: torch.Generator) -> UnitSolution:
        """See UnitSolver."""
        loop = _Loop(problem, self.rounding, self.training, rng)
        with torch.enable_grad():
            return loop.run()


class _Loop:
    def __init__(
        self, problem: UnitProblem, rounding: Rounding, training: Training, rng: torch.Generator
    ) -> None:
        self.problem, self.training, self.rng = problem, training, rng
        self.trainable = Trainable(problem, rounding, training, rng)
        held = min(training.held_back, problem.samples // 4)
        held -= held % (problem.batch or 1)
        order = torch.arange(problem.samples)
        self.pool, self.held = order[: problem.samples - held], order[problem.samples - held :]
        self.crop = find_crop(problem, training.window)
        self.batch = self._batch_size()
        self.held = self.held[: max(16, 16 * self.training.positions // self._largest_map())]
        images = all(n.op == "placeholder" for n in problem.program.inputs) and all(
            x.ndim == 4 for x in problem.float_inputs.values()
        )
        self.augment = training.augment and images
        self.power = {
            name: float((t[:256] - t[:256].mean(0)).square().mean()) + 1e-12
            for name, t in problem.targets.items()
        }

    def _batch_size(self) -> int:
        if self.problem.batch is not None:
            return self.problem.batch
        positions = self._largest_map() if self.crop is None else self.training.window**2
        fitting = self.training.positions // positions
        return max(4, min(self.training.batch, fitting, len(self.pool)))

    def _largest_map(self) -> int:
        """Positions of the largest input or result."""
        values = (*self.problem.targets.values(), *self.problem.quantized_inputs.values())
        return max(1, *(math.prod(v.shape[2:]) for v in values))

    def run(self) -> UnitSolution:
        groups = self.trainable.groups()
        if not groups:  # nothing of this region has a rate
            return self.trainable.solution(())
        optimizer = torch.optim.Adam(groups, foreach=True)
        base = [group["lr"] for group in groups]
        best, best_loss = self.trainable.snapshot(), self._judge()
        losses = [best_loss]
        self.penalty_scale = best_loss if math.isfinite(best_loss) else 1.0
        every = max(1, self.training.iterations // self.training.judgements)
        batches = self._batches()
        for iteration in range(self.training.iterations):
            if iteration % _REPORTS == 0:
                self.problem.report(iteration, self.training.iterations)
            progress = iteration / self.training.iterations
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
            loss = self._loss(*self._batch(next(batches)), progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if (iteration + 1) % every == 0 or iteration + 1 == self.training.iterations:
                losses.append(self._judge())
                if losses[-1] < best_loss or len(self.held) == 0:
                    best, best_loss = self.trainable.snapshot(), losses[-1]
        self.trainable.restore(best)
        return self.trainable.solution(tuple(losses))

    def _batches(self) -> Iterator[Tensor]:
        """Random samples, each once an epoch; in whole batches if the batch is fixed."""
        groups = self.pool.view(-1, self.problem.batch or 1)
        while True:
            order = groups[torch.randperm(len(groups), generator=self.rng)].flatten()
            for start in range(0, max(len(order) - self.batch + 1, 1), self.batch):
                yield order[start : start + self.batch]

    def _batch(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs and targets of a step."""
        crop, rows_of = self.crop, self.problem.rows_of
        place = (0, 0) if crop is None else crop.draw(self.rng)

        def of_input(x: Tensor) -> Tensor:
            return rows_of(x if crop is None else crop.of_input(x, place), rows)

        inputs: dict[str, Tensor] = {}
        for name, value in self.problem.quantized_inputs.items():
            x = of_input(value)
            if self.training.mix < 1:
                keep = torch.rand(x.numel(), generator=self.rng) < self.training.mix
                keep = keep.as_strided(x.shape, x.stride())
                x = torch.where(keep, x, of_input(self.problem.float_inputs[name]))
            inputs[name] = x
        if self.augment:
            inputs, targets = self._augmented(inputs, self.rng)
            if crop is not None:
                targets = {name: crop.of_result(t) for name, t in targets.items()}
            return inputs, targets
        targets = {
            name: rows_of(t if crop is None else crop.of_target(t, place), rows)
            for name, t in self.problem.targets.items()
        }
        return inputs, targets

    @torch.no_grad()
    def _augmented(
        self, inputs: Mapping[str, Tensor], rng: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """New images, and what the float network says to them."""
        images = {name: augmented(x, rng) for name, x in inputs.items()}
        return images, self.problem.program.run(images)

    def _loss(
        self, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], progress: float
    ) -> Tensor:
        results = self.trainable.run(inputs, hard=False)
        if self.crop is not None:
            results = {name: self.crop.of_result(y) for name, y in results.items()}
        loss = self._distance(results, targets)
        penalty = self.trainable.penalty(progress)
        return loss if penalty is None else loss + self.penalty_scale * penalty

    def _distance(self, results: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        terms = []
        for name, target in targets.items():
            if self.training.loss == "kl":
                log_p = target.log_softmax(-1)
                terms.append(
                    F.kl_div(
                        results[name].log_softmax(-1), log_p, log_target=True, reduction="batchmean"
                    )
                )
                continue
            terms.append(mean_squared_error(results[name], target) / self.power[name])
        return torch.stack(terms).sum()

    @torch.no_grad()
    def _judge(self) -> float:
        """Loss of the hardened region on the samples held back.

        Steps before have seen these, which makes the start look better than it is: where there are
        new images, it is judged on such, the same every time.
        """
        if len(self.held) == 0:
            return math.inf
        rng = torch.Generator().manual_seed(0)
        total, count, rows_of = 0.0, 0, self.problem.rows_of
        for rows in self.held.split(self.batch):
            if self.problem.batch is not None and len(rows) < self.problem.batch:
                break
            inputs = {n: rows_of(v, rows) for n, v in self.problem.quantized_inputs.items()}
            if self.augment:
                inputs, targets = self._augmented(inputs, rng)
            else:
                targets = {n: rows_of(t, rows) for n, t in self.problem.targets.items()}
            results = self.trainable.run(inputs, hard=True)
            total += float(self._distance(results, targets)) * len(rows)
            count += len(rows)
        return total / max(count, 1)
