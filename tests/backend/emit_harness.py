"""Run one emitter on random storages and compare with its reference operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxquant import targets
from fxquant.numerics.width import width_of
from fxquant.targets import Target
from tests.backend.kernel_harness import assert_halo, from_storage, run_kernel, to_storage
from tvm_backend.call import Call, Emitter, Value
from tvm_backend.emit.table import EMIT
from tvm_backend.kernel import Abi
from tvm_backend.layout import CHANNEL_MULTIPLE, NO_HALO, Flat, Halo, Image, code_offset, image

HALO: Halo = (1, 2, 0, 1)
LANE_SIZES = (1, 3, 4, 5, 15, 16, 17, 31, 33)

# uint8 storage natively, int8 storage emulated; the rest in the slow run.
NATIVE = (targets.X86_VNNI, targets.X86_AVX2, targets.GENERIC)
ALL = (
    targets.X86_VNNI,
    pytest.param(targets.X86_AVX2, marks=pytest.mark.slow),
    pytest.param(targets.GENERIC, marks=pytest.mark.slow),
    pytest.param(targets.CORTEX_A53, marks=pytest.mark.qemu),
    pytest.param(targets.ARMV7_NEON, marks=[pytest.mark.qemu, pytest.mark.slow]),
)
each_target = pytest.mark.parametrize("target", ALL, ids=str)


def codes(seed: int, *shape: int, bits: int = 8) -> Tensor:
    """Random codes of 8 or 16 bits with both extremes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1 << bits, shape, generator=generator)
    values.view(-1)[:1], values.view(-1)[-1:] = 0, (1 << bits) - 1
    return values.to(width_of(bits).codes)


def value(
    name: str, x: Tensor, target: Target, *, halo: Halo = NO_HALO, zero_point: int | None = None,
    multiple: int = CHANNEL_MULTIPLE,
) -> Value:  # fmt: skip
    """The value that holds a tensor on a target."""
    dtype = {torch.uint8: target.mac.storage, torch.uint16: "int16"}
    shape, stored = tuple(x.shape), dtype.get(x.dtype, str(x.dtype).removeprefix("torch."))
    if x.dtype == torch.float32 or not 2 <= x.ndim <= 4:
        return Value(name, shape, Flat(shape, stored))
    fill = None if zero_point is None else zero_point + code_offset(stored)
    return Value(name, shape, image(shape, stored, halo, multiple), fill)


def check(
    function: Callable[..., Any], target: Target, inputs: Sequence[Tensor],
    numbers: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None, *, halo: Halo = NO_HALO, zero_point: int = 9,
    multiple: int = CHANNEL_MULTIPLE, abi: Abi = Abi.PACKED,
) -> None:  # fmt: skip
    """Kernel == reference, halo included.

    Args:
        function: Reference operator.
        target: Device.
        inputs: Activations; a list operand (concat) is spread.
        numbers: Arguments that are no tensors.
        tensors: Parameter tensors.
        halo: Halo of the result.
        zero_point: What the halo holds.
        multiple: Channel padding of the result.
        abi: Calling convention.
    """
    tensors = dict(tensors or {})
    parameters = {**tensors, **numbers}
    spread = function.__name__ == "concat"
    expected = function(list(inputs), **parameters) if spread else function(*inputs, **parameters)
    sources = [value(f"x{i}", x, target) for i, x in enumerate(inputs)]
    output = value("y", expected, target, halo=halo, zero_point=zero_point, multiple=multiple)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    emitter: Emitter = EMIT[function]
    (kernel,) = emitter(Call("node", tuple(sources), arrays, numbers, output, target))
    stored = [to_storage(x, v.storage) for x, v in zip(inputs, sources, strict=True)]
    array = run_kernel(kernel, target, *stored, abi=abi)
    result = from_storage(array, output.storage, output.shape)
    assert result.dtype == expected.dtype
    different = np.argwhere((result != expected).numpy())
    assert not len(different), (
        f"{kernel.name} differs at {different[:5].tolist()}: "
        f"{result[tuple(different[0])]} instead of {expected[tuple(different[0])]}"
    )
    if isinstance(output.storage, Image) and expected.dtype in (torch.uint8, torch.uint16):
        assert_halo(array, output.storage, zero_point)
