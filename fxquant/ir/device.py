"""The device a graph is worked on: how it gets there and back, and how work stays there.

Graphs are captured, rewritten, stored and compiled on the CPU. Only calibration and bit allocation
run elsewhere: `move` takes the graph there, `working_on` makes what they create be made there, and
`move` takes the graph back. Random numbers are drawn where their generator is, on the CPU, so that
a seed gives the same ones on all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from fxquant.errors import CaptureError
from fxquant.ir import meta

CPU = torch.device("cpu")

_FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones,
    torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip


def model_device(model: Any) -> torch.device:
    """Where the parameters and buffers of a model are; the CPU if it has none.

    Raises:
        CaptureError: They are on several devices, or have no values.
    """
    if not isinstance(model, nn.Module | ExportedProgram):
        return CPU  # capture says what is wrong with it
    found: dict[torch.device, str] = {}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        found.setdefault(tensor.device, name)
    if len(found) > 1:
        raise CaptureError(
            "the model is spread over several devices",
            where=", ".join(f"{name} on {device}" for device, name in found.items()),
            why="calibration runs the whole network on one device",
            remedy="move it to one of them: model.to(device)",
        )
    device = next(iter(found), CPU)
    if device.type == "meta":
        raise CaptureError(
            "the parameters of the model have no values",
            where=f"{found[device]} on {device}",
            remedy="load a checkpoint: model.to_empty(device='cpu'), then load_state_dict",
        )
    return device


def device_of(gm: GraphModule) -> torch.device:
    """Where the tensors of a graph are; the CPU if it has none."""
    tensor = next(chain(gm.parameters(), gm.buffers()), None)
    return CPU if tensor is None else tensor.device


def move(gm: GraphModule, device: torch.device) -> GraphModule:
    """Take a graph to a device: its tensors, its metadata and the devices written in its calls.

    Tensors are replaced, not changed: others may share them.
    """
    held = chain(gm.named_parameters(remove_duplicate=False), gm.named_buffers())
    names = [name for name, _ in held]  # also those that no node reads any more
    names += [str(node.target) for node in gm.graph.nodes if node.op == "get_attr"]
    for name in names:
        _move_tensor(gm, name, device)
    for node in gm.graph.nodes:
        node.args = _with_device(node.args, device)
        node.kwargs = _with_device(node.kwargs, device)
        meta.move(node, device)
    gm.recompile()
    return gm


def _move_tensor(gm: GraphModule, name: str, device: torch.device) -> None:
    path, _, attribute = name.rpartition(".")
    owner = gm.get_submodule(path)
    value = getattr(owner, attribute)
    if not isinstance(value, Tensor) or value.device == device:
        return
    moved = value.detach().to(device)
    is_parameter = isinstance(value, nn.Parameter)
    setattr(owner, attribute, nn.Parameter(moved, requires_grad=False) if is_parameter else moved)


def _with_device(arguments: Any, device: torch.device) -> Any:
    """Arguments of a call, such as `torch.arange(n, device=x.device)` leaves in a graph."""
    return map_aggregate(arguments, lambda a: device if isinstance(a, torch.device) else a)


@contextmanager
def working_on(device: torch.device) -> Iterator[None]:
    """New tensors are made on a device, convolutions are reproducible and use all of float32.

    By default cuDNN rounds the operands of a convolution to ten bits (TF32): codes of eight bits
    times scales would not be what the integer network computes.
    """
    if device == CPU:
        yield
        return
    settings: Any = cudnn  # whose type stubs lack `conv`
    before = settings.deterministic, settings.conv.fp32_precision
    settings.deterministic, settings.conv.fp32_precision = True, "ieee"
    try:
        with _CreatingOn(device):
            yield
    finally:
        settings.deterministic, settings.conv.fp32_precision = before


class _CreatingOn(TorchFunctionMode):
    """Gives functions that create tensors a device, unless they were told one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FACTORIES or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        where = self.device if generator is None else generator.device
        return func(*args, **{**kwargs, "device": where}).to(self.device)
