"""Weights that an int16 chain cannot hold: split into a part that fits and a sparse rest.

`w = main + rest` on the few codes whose chain could leave int16; `main` runs through the chains.
The rest is a list of extra reduction steps a block of output channels, most of them a single
non-zero pair, each proved as a chain of its own. Both sums are exact, so their sum is.

Constants of the kernel, for blocks of `vectors` vectors:
    rest_first    int32 `[blocks + 1]`: steps of block b are `rest_first[b] .. rest_first[b + 1]`
    rest_at       int32 `[steps]`: element of the input, from the first element of the window
    rest_weights  int8 `[steps][vectors][lanes][reduction]`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxquant.targets import MacIdiom
from tvm_backend.emit.conv_problem import ConvProblem
from tvm_backend.macs.chain import INT16, as_elements
from tvm_backend.schedule.tiles import Span

_SAMPLED = 8  # vectors that tell how many steps a layer will need


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """The extra steps of a layer, block after block.

    Attributes:
        block: Block of each step, ascending, `[S]`.
        tap: Kernel position of each step, `[S]`.
        channel: First stored channel of each step, `[S]`.
        weights: int8 `[S, vectors, lanes, reduction]`.
        blocks: Number of blocks.
    """

    block: np.ndarray
    tap: np.ndarray
    channel: np.ndarray
    weights: np.ndarray
    blocks: int

    @property
    def steps(self) -> int:
        """Number of extra steps."""
        return len(self.block)

    def constants(self, problem: ConvProblem) -> list[tuple[str, np.ndarray]]:
        """The arrays of the module docstring; steps padded to a power of two.

        Layers of the same shape share a kernel, and its parameters have fixed sizes.
        """
        (_, kw), (dh, dw) = problem.kernel, problem.dilation
        source = problem.source
        row, col = np.divmod(self.tap, kw)
        at = row * dh * source.row_stride + col * dw * source.channels + self.channel
        missing = (1 << max(self.steps - 1, 0).bit_length()) - self.steps
        weights = np.pad(self.weights, [(0, missing), (0, 0), (0, 0), (0, 0)])
        first = np.searchsorted(self.block, np.arange(self.blocks + 1))
        return [
            ("rest_first", first.astype(np.int32)),
            ("rest_at", np.pad(at, (0, missing)).astype(np.int32)),
            ("rest_weights", weights.reshape(-1)),
        ]


def split_codes(
    codes: np.ndarray, idiom: MacIdiom, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(main, rest)` with `main + rest == codes` and every chain of `main` inside int16.

    Where activations have one sign, the largest sum comes from the codes of one sign alone and the
    smallest from the others; each is brought into int16 by itself. Where they have both, the
    magnitudes of all codes together are.

    Args:
        codes: int8 `[..., E]`, in the order a lane multiplies them.
        idiom: An idiom with a chain.
        low: Smallest activation as it is multiplied.
        high: Largest one.
    """
    elements = as_elements(codes, idiom)  # [..., chains, chain, elements, products]
    chains = elements.reshape(-1, *elements.shape[-3:])
    rest = np.zeros_like(chains)
    for kept, largest in _magnitudes(chains, low, high):
        sums = kept.sum((-3, -1), dtype=np.int32)  # [C, elements]
        some = np.flatnonzero((sums > largest).any(-1))
        if len(some):
            excess = _excess(kept[some].astype(np.int32), largest)
            rest[some] += np.sign(chains[some]) * excess
    flat = rest.reshape(*codes.shape[:-1], -1)[..., : codes.shape[-1]]
    return (codes - flat).astype(np.int8), flat.astype(np.int8)


def _magnitudes(chains: np.ndarray, low: int, high: int) -> Iterator[tuple[np.ndarray, int]]:
    """Magnitudes of the codes that make a sum together, and the most that they may add up to."""
    most, least = int(INT16.max), -int(INT16.min)
    if low < 0 < high:
        yield np.abs(chains), most // max(-low, high)
    else:
        same, other = (most, least) if high > 0 else (least, most)
        largest = max(high, -low, 1)
        yield np.maximum(chains, 0), same // largest
        yield np.maximum(-chains, 0), other // largest


def _excess(magnitude: np.ndarray, largest: int) -> np.ndarray:
    """What to remove from chains `[C, chain, elements, products]` for sums up to `largest`.

    Steps with the largest sums give first, so that few steps are touched.
    """
    by_step = magnitude.sum(-1, keepdims=True)
    excess = np.maximum(by_step.sum(-3, keepdims=True) - largest, 0)
    order = np.argsort(-by_step, axis=-3, kind="stable")
    taken = _take(np.take_along_axis(magnitude, order, -3), excess)
    return np.take_along_axis(taken, np.argsort(order, axis=-3, kind="stable"), -3)


def _take(magnitude: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Remove `excess` from each element's `[chain, elements, products]`, first codes first."""
    steps_first = np.moveaxis(magnitude, -2, -3)  # [..., elements, chain, products]
    flat = steps_first.reshape(*steps_first.shape[:-2], -1)
    before = np.cumsum(flat, -1) - flat
    wanted = np.moveaxis(excess, -2, -3)[..., 0]  # [..., elements, 1]
    taken = np.clip(wanted - before, 0, flat)
    return np.moveaxis(taken.reshape(steps_first.shape), -3, -2)


def rest_of(
    codes: np.ndarray, spans: Sequence[Span], idiom: MacIdiom, low: int, high: int
) -> tuple[np.ndarray, Rest]:
    """The codes that run through the chains, and the extra steps for the others.

    Args:
        codes: int8 `[vectors, lanes, E, taps]`, all vectors from the same channel on.
        spans: Runs of equal blocks, in vectors.
        idiom: An idiom with a chain.
        low: Smallest activation as it is multiplied.
        high: Largest one.
    """
    main, left = split_codes(codes.transpose(0, 3, 1, 2), idiom, low, high)  # [V, taps, L, E]
    parts = []
    while left.any():
        part, left = split_codes(left, replace(idiom, chain=1), low, high)
        parts.append(part)
    per_step, lanes = idiom.reduction, idiom.lanes
    blocks = [(s.first + i * s.step, s.step) for s in spans for i in range(s.count)]
    widest = max(vectors for _, vectors in blocks)
    found = [(np.zeros(0, int),) * 3 + (np.zeros((0, widest, lanes, per_step), np.int8),)]
    for index, (first, vectors) in enumerate(blocks):
        for part in parts:
            block = part[first : first + vectors]
            steps = block.reshape(*block.shape[:3], -1, per_step).transpose(1, 3, 0, 2, 4)
            tap, step = np.nonzero(steps.any((2, 3, 4)))
            weights = np.zeros((len(tap), widest, lanes, per_step), np.int8)
            weights[:, :vectors] = steps[tap, step]
            found.append((np.full(len(tap), index), tap, step * per_step, weights))
    block, tap, channel, weights = (np.concatenate(column) for column in zip(*found, strict=True))
    return main.transpose(0, 2, 3, 1), Rest(block, tap, channel, weights, len(blocks))


def rest_fraction(codes: np.ndarray, idiom: MacIdiom, low: int, high: int) -> float:
    """Share of the reduction steps of a vector that need an extra one; arguments as `rest_of`.

    An estimate, from a few vectors.
    """
    sample = codes[:: -(-len(codes) // _SAMPLED)]
    _, rest = split_codes(sample.transpose(0, 3, 1, 2), idiom, low, high)
    steps = rest.reshape(*rest.shape[:3], -1, idiom.reduction).any((2, 4))  # [V, taps, steps]
    return float(steps.mean())
