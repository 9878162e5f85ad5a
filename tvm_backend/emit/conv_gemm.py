"""2-D convolution as an implicit matrix product (dense and grouped): how a layer is computed.

Everything that can be decided when the kernel is made: idiom, tile and form of the weights (the
cost model's choice, with the layer's actual codes), packed weights, constants. `conv_emitter.py`
has the loops.

Idioms of wider activations than the input has read a copy that the kernel widens block by block
(`conv_staging.py`). Idioms with int16 chains take the weights their chains can hold;
`conv_rest.py` makes extra steps of the others.

Zero points: `sum (x - zp) * w + bias == sum x * w + (bias - zp * sum w)`, folded when packing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fxquant.errors import UnsupportedError
from fxquant.targets import MacIdiom
from tvm_backend.emit.conv_assemble import assemble, fold_zero_point, kernel_name
from tvm_backend.emit.conv_columns import columns_as_channels, stays_inside
from tvm_backend.emit.conv_emitter import GemmEmitter
from tvm_backend.emit.conv_pack import (
    channel_blocks,
    pack_blocks,
    reduction_ranges,
    slot_channels,
    slot_codes,
)
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.emit.conv_rest import rest_fraction, rest_of
from tvm_backend.emit.conv_staging import Staging, is_staged
from tvm_backend.emit.conv_weights import WeightForm, possible_forms
from tvm_backend.emit.epilogue import OutputStage
from tvm_backend.emit.variants import Alternative, best_of
from tvm_backend.kernel import Kernel
from tvm_backend.macs import Mac
from tvm_backend.macs.chain import chain_is_exact
from tvm_backend.schedule.tiles import Plan, Tile, plan_tiles


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
    half_width: bool = False,
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
        half_width: See `Target`.
    """
    possible = [form] if form else possible_forms(problem, weight)
    plans = [
        (plan, mac, chosen)
        for mac in macs
        for chosen, plan in _plans(
            *columns_as_channels(problem, weight, mac), mac, possible, half_width
        )
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
    if mac.idiom.chain and problem.groups == 1:
        codes, rest = rest_of(codes, blocks.spans, mac.idiom, *problem.input_bounds)
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
    emitter = GemmEmitter(problem, stage, mac, tile, form, blocks, reduction, bool(suffix))
    name = kernel_name(operator, stored, stage, tile, mac.idiom, suffix, form.bits)
    kernel = assemble(name, stored, stage, constants, emitter.emit)
    return replace(kernel, weight_bits=form.bits)


def _plans(
    problem: ConvProblem, weight: np.ndarray, mac: Mac, forms: Sequence[WeightForm],
    half_width: bool,
) -> list[tuple[WeightForm, Plan]]:  # fmt: skip
    """The tiles of an idiom for each form of the weights; none if the idiom is not exact."""
    lanes, (low, high) = mac.idiom.lanes, problem.input_bounds
    vectors = -(-problem.output.c // lanes)
    reduction = reduction_ranges(problem, vectors, mac)
    fraction = 0.0
    if problem.output.h * problem.output.w < mac.idiom.pixels or not stays_inside(problem, mac):
        return []
    if mac.idiom.chain > max(reduction.steps, 1):
        return []  # a chain ends with a kernel position; a shorter one fills it
    if is_staged(problem, mac) and problem.output.h * problem.output.w == 1:
        return []  # one pixel is bound by its weights
    if mac.idiom.chain:
        channels = np.arange(vectors * lanes).reshape(-1, lanes)
        codes = slot_codes(problem, weight, channels, reduction, mac)
        if problem.groups == 1:
            fraction = rest_fraction(codes, mac.idiom, low, high)
        elif not chain_is_exact(codes.swapaxes(2, 3), mac.idiom, low, high):
            return []  # extra steps are for vectors that share their channels
    output, steps = problem.output, reduction.steps * problem.taps
    shared, rest = problem.groups == 1, round(fraction, 3)
    plans = [
        (form, plan)
        for form in forms
        for plan in plan_tiles(
            mac.idiom,
            output.h,
            output.w,
            vectors,
            steps,
            shared,
            rest,
            form.bits,
            output.n,
            half_width,
        )
    ]
    if not is_staged(problem, mac):
        return plans
    stagings = ((form, plan, Staging(problem, plan.tile)) for form, plan in plans)
    return [(form, replace(p, cycles=p.cycles + s.cycles)) for form, p, s in stagings if s.fits]
