"""Proof that an int16 chain never leaves int16, from the codes it really multiplies.

A chained idiom splits the `chain * reduction` products of a lane over two int16 elements (one where
the reduction is 1) and adds the elements to int32 afterwards. A sum of products `x * w` with
`low <= x <= high` lies between the sum of the smaller and the sum of the larger of `low * w`,
`high * w`; with `low <= 0 <= high` this covers every part of the sum as well, in any order.
"""

from __future__ import annotations

import numpy as np

from fxquant.targets import MacIdiom

INT16 = np.iinfo(np.int16)


def elements_of(idiom: MacIdiom) -> int:
    """int16 elements an int32 lane is widened from."""
    return min(idiom.reduction, 2)


def chain_bounds(codes: np.ndarray, idiom: MacIdiom, low: int, high: int) -> tuple[int, int]:
    """Smallest and largest value any int16 element can take.

    Args:
        codes: Weight codes in the order a lane multiplies them, `[..., E]`; the last chain may be
            shorter than the others.
        idiom: An idiom with a chain.
        low: Smallest activation as it is multiplied.
        high: Largest one.
    """
    low, high = min(low, 0), max(high, 0)
    chains = as_elements(codes, idiom)
    smallest = np.minimum(chains * low, chains * high).sum((-3, -1))
    largest = np.maximum(chains * low, chains * high).sum((-3, -1))
    return int(smallest.min(initial=0)), int(largest.max(initial=0))


def as_elements(codes: np.ndarray, idiom: MacIdiom) -> np.ndarray:
    """`[..., E]` -> int64 `[..., chains, chain, elements, products]`, zeros behind the end."""
    extent, elements = idiom.chain * idiom.reduction, elements_of(idiom)
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % extent)]
    padded = np.pad(codes.astype(np.int64), padding)
    products = idiom.reduction // elements
    return padded.reshape(*codes.shape[:-1], -1, idiom.chain, elements, products)


def chain_is_exact(codes: np.ndarray, idiom: MacIdiom, low: int, high: int) -> bool:
    """Whether no int16 element of the idiom can overflow; arguments as `chain_bounds`."""
    smallest, largest = chain_bounds(codes, idiom, low, high)
    return smallest >= INT16.min and largest <= INT16.max
