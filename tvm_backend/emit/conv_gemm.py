"""2-D convolution as an implicit matrix product (dense and grouped).

For each register tile of M pixels x NB vectors of output channels: the accumulators start at
the bias, loops over kernel rows, columns and groups of input channels multiply activations
(broadcast) by packed weights, and the output stage finishes the accumulators. Idioms that multiply
matrices do so for groups of pixels (`macs/pixels.py`). The input is read in place: the halo makes
padding ordinary memory, so a pixel's window is base + constant.

Idioms of wider activations than the input has read a copy that the kernel widens block by block
(`conv_staging.py`). Idioms with int16 chains take the weights their chains can hold;
`conv_rest.py` makes extra steps of the others. Which idiom a layer takes is the cost model's
choice, with its actual codes.

Zero points: `sum (x - zp) * w + bias == sum x * w + (bias - zp * sum w)`, folded when packing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.targets import MacIdiom
from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_columns import columns_as_channels, stays_inside
from tvm_backend.emit.conv_loops import TileAt, Window, visit_tiles
from tvm_backend.emit.conv_pack import (
    ChannelBlocks,
    Reduction,
    channel_blocks,
    pack_blocks,
    reduction_ranges,
    slot_channels,
    slot_codes,
)
from tvm_backend.emit.conv_prefetch import is_streamed, prefetch_share
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_rest import rest_fraction, rest_of
from tvm_backend.emit.conv_staging import Staging, visit_staged
from tvm_backend.emit.conv_weights import WeightForm, possible_forms
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import Alternative, best_of
from tvm_backend.kernel import Abi, Kernel
from tvm_backend.layout import code_width
from tvm_backend.macs import Mac
from tvm_backend.macs.chain import chain_is_exact
from tvm_backend.macs.pixels import accumulator_type, load_group, pixel_groups, rows, spread
from tvm_backend.macs.vector import load, loop, registers
from tvm_backend.schedule.tiles import Plan, Tile, holds_activations, plan_tiles
from tvm_backend.tvm_api import T


def gemm_kernel(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    macs: Sequence[Mac],
    tile: Tile | None = None,
    others: Sequence[Alternative] = (),
    form: WeightForm | None = None,
) -> Kernel:
    """The kernel of a convolution with a given output stage.

    Args:
        operator: Operator in the kernel's name.
        problem: Storages and geometry.
        stage: What happens to the accumulators.
        weight: int8 `[O, C/groups, KH, KW]`.
        bias: `[O]`.
        macs: What can multiply and accumulate; the fastest for these codes does.
        tile: Register tile; by default chosen by the cost model.
        others: Kernels of another kind, taken where they are faster; not if a tile is given.
        form: How weights lie in memory; by default chosen by the cost model for each idiom.
    """
    possible = [form] if form else possible_forms(problem, weight)
    plans = [
        (plan, mac, chosen)
        for mac in macs
        for chosen, plan in _plans(*columns_as_channels(problem, weight, mac), mac, possible)
    ]
    plans.sort(key=lambda choice: choice[0].cycles)
    if not plans:
        raise UnsupportedError(
            f"weights of {possible[0].bits} bits cannot be multiplied as they lie in memory",
            where=str(problem),
            why=f"no idiom unpacks them: {', '.join(mac.idiom.name for mac in macs)}",
            remedy="keep them as bytes",
        )
    fastest = plans[0][0].cycles
    forms: dict[MacIdiom, WeightForm] = {}
    for _, mac, chosen in plans:
        forms.setdefault(mac.idiom, chosen)
    schedules = [(mac, plan.tile) for plan, mac, chosen in plans if chosen == forms[mac.idiom]]
    if tile is not None:
        schedules, others = [(schedules[0][0], tile)], ()
    make = partial(_scheduled, operator, problem, stage, weight, bias, forms)
    bits = forms[schedules[0][0].idiom].bits
    return best_of(operator, problem, stage, schedules, make, others, fastest, bits)


def _scheduled(
    operator: str,
    problem: ConvProblem,
    stage: OutputStage,
    weight: np.ndarray,
    bias: np.ndarray,
    forms: Mapping[MacIdiom, WeightForm],
    mac: Mac,
    tile: Tile,
) -> Kernel:
    stored, (problem, weight) = problem, columns_as_channels(problem, weight, mac)
    lanes, form = mac.idiom.lanes, forms[mac.idiom]
    vectors = -(-problem.output.c // lanes)
    reduction = reduction_ranges(problem, vectors, mac)
    blocks = channel_blocks(vectors, tile.vectors, stage)
    channels = slot_channels(blocks, stage, lanes)
    codes = slot_codes(problem, weight, channels, reduction, mac)
    constants, suffix = [], ""
    if mac.idiom.chain and not problem.input_bounds[0]:
        codes, rest = rest_of(codes, blocks.spans, mac.idiom, problem.input_qmax)
        if rest.steps:
            constants = rest.constants(problem)
            suffix = f"_rest{len(constants[1][1])}"
    if problem.groups > 1:
        constants.append(("starts", reduction.starts.astype(np.int32)))
    packed = pack_blocks(codes, blocks.spans, mac.idiom.reduction, form)
    folded = fold_zero_point(problem, weight, bias, vectors * lanes)
    constants = [
        ("weights", packed), *constants, *stage.constants(folded, blocks.all_chunks())
    ]  # fmt: skip
    emitter = _GemmEmitter(problem, stage, mac, tile, form, blocks, reduction, bool(suffix))
    name = kernel_name(operator, stored, stage, tile, mac.idiom, suffix, form.bits)
    kernel = assemble(name, stored, stage, constants, emitter.emit)
    return replace(kernel, weight_bits=form.bits)


def _plans(
    problem: ConvProblem, weight: np.ndarray, mac: Mac, forms: Sequence[WeightForm]
) -> list[tuple[WeightForm, Plan]]:
    """The tiles of an idiom for each form of the weights; none if the idiom is not exact."""
    lanes, (low, high) = mac.idiom.lanes, problem.input_bounds
    vectors = -(-problem.output.c // lanes)
    reduction = reduction_ranges(problem, vectors, mac)
    fraction = 0.0
    if problem.output.h * problem.output.w < mac.idiom.pixels or not stays_inside(problem, mac):
        return []
    if mac.idiom.chain > max(reduction.steps, 1):
        return []  # a chain ends with a kernel position; a shorter one fills it
    if _is_staged(problem, mac) and problem.output.h * problem.output.w == 1:
        return []  # one pixel is bound by its weights
    if mac.idiom.chain:
        channels = np.arange(vectors * lanes).reshape(-1, lanes)
        codes = slot_codes(problem, weight, channels, reduction, mac)
        if low or problem.groups > 1:
            # Extra steps are for unsigned activations and vectors that share their channels.
            if not chain_is_exact(codes.swapaxes(2, 3), mac.idiom, low, high):
                return []
        else:
            fraction = rest_fraction(codes, mac.idiom, high)
    output, steps = problem.output, reduction.steps * problem.taps
    shared, rest = problem.groups == 1, round(fraction, 3)
    plans = [
        (form, plan)
        for form in forms
        for plan in plan_tiles(
            mac.idiom, output.h, output.w, vectors, steps, shared, rest, form.bits, output.n
        )
    ]
    if not _is_staged(problem, mac):
        return plans
    stagings = ((form, plan, Staging(problem, plan.tile)) for form, plan in plans)
    return [(form, replace(p, cycles=p.cycles + s.cycles)) for form, p, s in stagings if s.fits]


def _is_staged(problem: ConvProblem, mac: Mac) -> bool:
    """Whether the idiom wants wider activations than the input has."""
    return mac.idiom.activation_bits != code_width(problem.source.dtype).bits


class _GemmEmitter:
    """Emits the loops of one kernel; holds what they share."""

    def __init__(
        self,
        problem: ConvProblem,
        stage: OutputStage,
        mac: Mac,
        tile: Tile,
        form: WeightForm,
        blocks: ChannelBlocks,
        reduction: Reduction,
        has_rest: bool,
    ) -> None:
        self.problem, self.stage, self.mac = problem, stage, mac
        self.tile, self.form, self.blocks, self.reduction = tile, form, blocks, reduction
        self.has_rest = has_rest
        self.lanes, self.per_step = mac.idiom.lanes, mac.idiom.reduction
        self.per_vector = self.lanes * self.per_step
        vectors = sum(span.count * span.step for span in blocks.spans)
        weights = vectors * self.per_vector * reduction.steps * problem.taps
        streamed = is_streamed(mac.idiom, tile, problem.output, weights)
        self.streamed = streamed and form.density == 1

    def emit(self, buffers: dict[str, Any], abi: Abi) -> None:
        """All tiles."""

        def staged(at: TileAt, window: Window) -> None:
            self._emit_tile(buffers, at, window)

        def direct(at: TileAt) -> None:
            problem, source = self.problem, self.problem.source
            h = at.h * problem.stride[0] - problem.padding[0]
            w = at.w * problem.stride[1] - problem.padding[2]
            origin = source.offset(at.n, h, w, 0)
            staged(
                at,
                Window(buffers["x"], origin, source.row_stride, source.channels, problem.stride),
            )

        spans = self.blocks.spans
        if _is_staged(self.problem, self.mac):
            visit_staged(Staging(self.problem, self.tile), spans, abi, buffers["x"], staged)
        else:
            visit_tiles(self.problem.output, self.tile, spans, abi, direct)

    def _emit_tile(self, buffers: dict[str, Any], at: TileAt, window: Window) -> None:
        vectors, groups = at.span.step, pixel_groups(at.pixels, self.mac.idiom)
        acc = registers(len(groups) * vectors, accumulator_type(self.mac.idiom))
        slot = T.Bind(at.vector * self.lanes)
        for v in range(vectors):
            bias = load(buffers["bias"], slot + v * self.lanes, self.lanes)
            start = T.Bind(spread(self.mac, bias))
            for m in range(len(groups)):
                T.buffer_store(acc, start, [m * vectors + v])
        self._reduce(buffers, at, window, acc)
        for m, pixels in enumerate(groups):
            finished = [rows(self.mac, acc[m * vectors + v]) for v in range(vectors)]
            for p, (i, j) in enumerate(pixels):
                for first, size in self.blocks.chunks_of(vectors):
                    accs = [vector[p] for vector in finished[first : first + size]]
                    position = (at.n, at.h + i, at.w + j)
                    self.stage.finish(buffers, accs, slot + first * self.lanes, position)

    def _reduce(self, buffers: dict[str, Any], at: TileAt, window: Window, acc: Any) -> None:
        """Loops over kernel rows, columns and reduction steps."""
        (kh, kw), (dh, dw) = self.problem.kernel, self.problem.dilation
        starts = self._range_starts(buffers, at)
        steps, per_step = self.reduction.steps, self.form.stored(at.span.step) * self.per_vector
        if self._contiguous(window):
            steps, kw = steps * kw, 1
        # Where unrolled steps would meet the words of the next pixels, LLVM keeps these in
        # registers it does not have: a step (or chain) at a time then, and rows innermost.
        size = max(self.mac.idiom.chain, 1) if kw == 1 and self._overlapping(window) else steps
        weights = self._weight_base(at)
        with loop(steps // size) as k, loop(kh) as row, loop(kw) as col:
            x = window.origin + row * (dh * window.row_stride) + col * (dw * window.channels)
            w = T.Bind(weights + ((row * kw + col) * steps + k * size) * per_step)
            x = T.Bind(x + k * (size * self.per_step))
            self._reduce_run(buffers["weights"], at, window, acc, x, w, starts, size)
        if self.has_rest:
            self._reduce_rest(buffers, at, window, acc)

    def _contiguous(self, window: Window) -> bool:
        """Whether the steps of a kernel row follow one another, in memory and in chains."""
        steps, chain = self.reduction.steps, max(self.mac.idiom.chain, 1)
        whole = steps * self.per_step == window.channels and steps % chain == 0
        return whole and self.problem.dilation[1] == 1 and self.problem.groups == 1

    def _overlapping(self, window: Window) -> bool:
        """Whether pixels of a tile load words of their neighbours within unrolled steps."""
        distance = window.stride[1] * window.channels
        near = distance < self.mac.unroll * self.per_step
        wide = self.problem.kernel[1] * window.channels > distance
        return near and wide and self.tile.tw > 1 and not holds_activations(self.mac.idiom)

    def _reduce_rest(self, buffers: dict[str, Any], at: TileAt, window: Window, acc: Any) -> None:
        """The extra steps of this block: as many as the data say."""
        block = at.span.first // self.tile.vectors + at.block
        first = T.Bind(buffers["rest_first"][block])
        count = T.Bind(buffers["rest_first"][block + 1] - first)
        per_step = self.tile.vectors * self.per_vector
        start = T.Bind(window.origin)
        with T.serial(count) as k:
            step = first + k
            x = T.Bind(start + buffers["rest_at"][step])
            w = T.Bind(step * per_step)
            self._steps(buffers["rest_weights"], at, window, acc, x, w, [0], 1)

    def _weight_base(self, at: TileAt) -> Any:
        """First weight of a block; all blocks before it have `tile.vectors` vectors."""
        vectors = self.tile.vectors
        first = at.span.first // vectors * self.form.stored(vectors)
        first = first + at.block * self.form.stored(at.span.step)
        return T.Bind(first * (self.problem.taps * self.reduction.steps * self.per_vector))

    def _range_starts(self, buffers: dict[str, Any], at: TileAt) -> list[Any]:
        """First input channel of each vector; a single 0 if all reduce over all channels."""
        if self.problem.groups == 1:
            return [0]
        return [T.Bind(buffers["starts"][at.vector + v]) for v in range(at.span.step)]

    def _reduce_run(
        self, weights: Any, at: TileAt, window: Window, acc: Any, x: Any, w: Any,
        starts: list[Any], steps: int,
    ) -> None:  # fmt: skip
        """Reduction steps on contiguous activations, `mac.unroll` at a time."""
        per_step = self.form.stored(at.span.step) * self.per_vector
        whole = steps // self.mac.unroll
        if whole:
            with loop(whole) as i:
                first = i * self.mac.unroll
                self._steps(
                    weights, at, window, acc, x + first * self.per_step, w + first * per_step,
                    starts, self.mac.unroll,
                )  # fmt: skip
        for k in range(whole * self.mac.unroll, steps):
            self._steps(
                weights, at, window, acc, x + k * self.per_step, w + k * per_step, starts, 1
            )

    def _steps(
        self, buffer: Any, at: TileAt, window: Window, acc: Any, x: Any, w: Any,
        starts: list[Any], count: int,
    ) -> None:  # fmt: skip
        """`count` reduction steps of all pixels and vectors of the tile."""
        sh, sw = window.stride
        vectors, stored = at.span.step, self.form.stored(at.span.step)
        tiles = [
            [
                load_group(
                    self.mac,
                    window.buffer,
                    [
                        x + start + (i * sh * window.row_stride + j * sw * window.channels)
                        for i, j in pixels
                    ],
                    count,
                )
                for start in starts
            ]
            for pixels in pixel_groups(at.pixels, self.mac.idiom)
        ]
        nbytes = count * stored * self.per_vector
        self.form.prefetch(buffer, w, nbytes)
        if self.streamed:
            block = self.reduction.steps * self.problem.taps * stored * self.per_vector
            prefetch_share(buffer, at, self.tile, self.problem.output, w + block, nbytes)
        size = max(self.mac.idiom.chain, 1)
        for first in range(0, count, size):
            chain = range(first, min(first + size, count))

            def operands(m: int, chain: range = chain) -> list[list[Any]]:
                return [[T.Bind(steps[k]) for k in chain] for steps in tiles[m]]

            loaded: dict[int, list[list[Any]]] = {}

            def weights(v: int, chain: range = chain, loaded: dict = loaded) -> list[Any]:
                shared = self.form.shared(v, vectors)  # these come out of one vector of memory
                if shared.start not in loaded:
                    at = w + shared.start // self.form.density * self.per_vector
                    loaded[shared.start] = [
                        self.form.load(
                            self.mac, buffer, at + k * (stored * self.per_vector), len(shared)
                        )
                        for k in chain
                    ]
                return [step[v - shared.start] for step in loaded[shared.start]]

            self._multiply(acc, len(tiles), vectors, operands, weights)

    def _multiply(
        self, acc: Any, groups: int, vectors: int, operands: Callable[[int], list[list[Any]]],
        weights: Callable[[int], list[Any]],
    ) -> None:  # fmt: skip
        """One chain or step. What registers hold is loaded first, the rest when it is used.

        Args:
            acc: Accumulators.
            groups: Groups of pixels.
            vectors: Vectors of output channels.
            operands: Activations of a group: one list, or one for each vector.
            weights: Those of a vector.
        """

        def step(m: int, v: int, found: list[list[Any]], factors: list[Any]) -> None:
            index = m * vectors + v
            activations = found[v if len(found) > 1 else 0]
            value = self.mac.multiply_accumulate(acc[index], activations, factors)
            T.buffer_store(acc, value, [index])

        if holds_activations(self.mac.idiom):
            held = [operands(m) for m in range(groups)]
            for v in range(vectors):
                factors = weights(v)
                for m in range(groups):
                    step(m, v, held[m], factors)
        else:
            kept = [weights(v) for v in range(vectors)]
            for m in range(groups):
                found = operands(m)
                for v in range(vectors):
                    step(m, v, found, kept[v])
