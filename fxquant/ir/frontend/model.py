"""A copy of the caller's model in inference mode, which computes what its forward() says.

Tracing puts functions in the place of known modules, so nothing may happen beside their forward():
parameters that are computed at every call are computed once, here, and hooks are refused.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxquant.errors import CaptureError


def inference_copy(model: nn.Module) -> nn.Module:
    """The copy, on the CPU; the caller's model is not changed.

    Raises:
        CaptureError: The model cannot be copied, or does more than its forward() says.
    """
    _check_kind(model)
    model = _copied(model).cpu().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        for module in list(model.modules()):
            _compute_parameters(module)
    _check_hooks(model)
    return model


def _check_kind(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                "the model is compiled to TorchScript",
                where=_place(path, module),
                why="its code is no Python that could be traced",
                remedy="pass the nn.Module that was scripted or traced",
            )
        if any(map(is_lazy, chain(module.parameters(False), module.buffers(False)))):
            raise CaptureError(
                "a lazy module has no parameters yet",
                where=_place(path, module),
                remedy="run the model once: model(example_inputs)",
            )
    if "forward" in vars(model):
        raise CaptureError(
            "the forward() of the model was replaced",
            where=type(model).__name__,
            why="the graph is made from the forward() of its class",
            remedy="pass the model as it was before (torch.compile: the one that was compiled), or "
            "a module whose forward() calls the replacement",
        )


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; results that modules keep (pruned weights) are copied without their history."""
    kept = chain.from_iterable(vars(module).values() for module in model.modules())
    results = [t for t in kept if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in results})
    except Exception as error:  # whatever the attributes of the model raise
        raise CaptureError(
            "the model cannot be copied",
            where=type(model).__name__,
            why=f"copy.deepcopy: {type(error).__name__}: {error}",
            remedy="keep what cannot be copied (files, locks, results with gradients) out of the "
            "modules",
        ) from error


def _compute_parameters(module: nn.Module) -> None:
    """Make plain tensors of weights that are parametrized, normalized or pruned."""
    if parametrize.is_parametrized(module):
        # remove_parametrizations would change the class, which the caller's model shares
        assert isinstance(module.parametrizations, nn.ModuleDict)
        values = {name: getattr(module, name) for name in module.parametrizations}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm):
            hook(module, ())
            del module._forward_pre_hooks[key]


def _check_hooks(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise CaptureError(
                "forward hooks are registered on a module",
                where=_place(path, module),
                why="the graph holds what forward() computes, hooks would be lost",
                remedy="remove them (handle.remove()), or do in forward() what they do",
            )


def _place(path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__
