"""A device "cuda" for machines without one: CPU tensors in a wrapper that says where it is.

Arithmetic is that of the CPU, so results are equal bit for bit; what CUDA refuses is refused: an
operator on tensors of both devices, numpy(), a CPU generator for CUDA numbers.

The wrapper is a CPU tensor to autograd (whose threads belong to real devices), a "cuda" tensor to
Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Proxy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)

_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default}
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default,
            _ATEN._index_put_impl_.default}  # fmt: skip
_FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones,
    torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros,
    torch.from_file,
}  # fmt: skip


class Accelerated(Tensor):
    """A tensor on the device.

    Attributes:
        held: The same on the CPU.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        return Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return True

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Accelerated({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = Accelerated(self.held.clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _check(func, args, kwargs)
        result = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrap, result))


def _unwrap(value: Any) -> Any:
    return value.held if isinstance(value, Accelerated) else value


def _wrap(value: Any) -> Any:
    return Accelerated(value) if isinstance(value, Tensor) else value


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Refuse what CUDA refuses: operands on the CPU, but for numbers and indices."""
    if func in _COPIES:
        return
    leaves = tree_leaves((args, kwargs))
    if func in _INDEXED and isinstance(args[0], Accelerated):
        leaves = [args[0], *args[2:3]]  # the indices may be anywhere
    strangers = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Accelerated)]
    scalars_fit = torch.Tag.pointwise in func.tags or func in _INDEXED
    if any(x.ndim > 0 or not scalars_fit for x in strangers):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({func})"
        )


class _Accelerator(TorchFunctionMode):
    """What creates and moves tensors."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("device"), Proxy):  # in a trace
            return func(*args, **kwargs)
        if func in _FACTORIES or (isinstance(func, OpOverload) and "device" in kwargs):
            return _create(func, args, kwargs)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if func is Tensor.cpu:
            return _to(*args, "cpu", **kwargs)
        if func is Tensor.cuda:
            return _to(*args, "cuda", **kwargs)
        return func(*args, **kwargs)


def _create(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor:
    device = torch.device(kwargs.pop("device", None) or "cpu")
    if device.type != "cuda":
        return func(*args, **kwargs, device=device)
    generator = kwargs.get("generator")
    if generator is not None:
        raise RuntimeError(
            f"Expected a 'cuda' device type for generator but found '{generator.device}'"
        )
    made = func(*tree_map(_unwrap, args), **kwargs)
    return Accelerated(made)


def _to(x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
    result = x if dtype is None else Tensor.to(x, dtype)
    if device is None or device.type == x.device.type:
        return result.clone() if copy and result is x else result
    if device.type == "cuda":
        return Accelerated(result.detach().clone())
    return result.detach().held.clone() if device.type == "cpu" else Tensor.to(result, device)


@contextmanager
def accelerator() -> Iterator[None]:
    """Inside there is a device "cuda"."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper has no storage
    try:
        with _Accelerator():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def on_device(model: nn.Module) -> nn.Module:
    """A model moved to the device, inside `accelerator`."""
    return model.to(CUDA)
