"""Rewrite a captured graph into the dialect: one call_function node an operator.

Before: modules, functions, methods and aten overloads, sizes computed in the graph.
After:  functions of `fxquant.ops` on values, get_attr nodes for every tensor, static arguments as
        keywords; what the dialect lacks keeps its torch target and will stay in float.

The walk keeps, for every source node, its new value: a node, a tuple of values, or a constant.
Everything that is no tensor (sizes, flags) was recorded in one run on the example inputs, as was
what is computed from parameters alone: it becomes a tensor of the graph where something reads it.
"""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxquant.errors import CaptureError
from fxquant.ir.build import GraphBuilder
from fxquant.ir.frontend.call import Call, canonical_name, handled
from fxquant.ir.frontend.capture import source_line
from fxquant.ir.frontend.handlers import HANDLERS
from fxquant.ir.frontend.in_place import out_of_place
from fxquant.ir.frontend.modules import MODULES, Functional, Parameter
from fxquant.ir.frontend.record import Recorder, TensorInfo, has_tensor
from fxquant.ir.meta import Provenance, set_provenance, set_value, shape_of

_SHAPE_QUERIES = {"size", "dim", "ndimension", "numel", "getattr", "len", "is_floating_point",
                  "stride", "sym_size", "getitem", "eq", "ne", "type", "is_contiguous"}  # fmt: skip
_ASSERTIONS = {"_assert", "_assert_async", "_assert_tensor_metadata", "_log_api_usage_once"}


def normalize(gm: GraphModule, inputs: tuple[Tensor, ...]) -> GraphModule:
    """The graph in the dialect; see the module docstring.

    Raises:
        CaptureError: The model fails on the example inputs, or reads values out of tensors.
    """
    recorder = Recorder(gm)
    try:
        with torch.inference_mode(False), torch.no_grad():
            recorder.run(*(x.clone() for x in inputs))  # the model may write into them
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model fails on the example inputs: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            where=", ".join(str(tuple(x.shape)) for x in inputs),
            remedy="pass example inputs that forward() accepts",
        ) from error
    return _Normalizer(gm, recorder).run()


class _Normalizer:
    """The walk over the captured graph."""

    def __init__(self, gm: GraphModule, recorder: Recorder) -> None:
        self.gm, self.values, self.overwritten = gm, recorder.values, recorder.overwritten
        self.constants = recorder.constants
        self.builder = GraphBuilder()
        self.env: dict[Node, Any] = {}

    def run(self) -> GraphModule:
        outputs: Any = None
        for node in self.gm.graph.nodes:
            if node.op == "output":
                outputs = self._mapped(node.args[0])
            else:
                self.env[node] = self._value(node)
                for alias in self.overwritten.get(node, ()):
                    self.env[alias] = self.env[node]
        return self.builder.finish(outputs)

    def _mapped(self, argument: Any) -> Any:
        """An argument with source nodes replaced by their new values, in plain containers."""
        if isinstance(argument, Node):
            return self._read(self.env[argument])
        if isinstance(argument, tuple):  # also a namedtuple, which fx and files do not know
            return tuple(self._mapped(a) for a in argument)
        if isinstance(argument, list):
            return [self._mapped(a) for a in argument]
        if isinstance(argument, dict):
            return {k: self._mapped(v) for k, v in argument.items()}
        if isinstance(argument, slice):
            parts = (argument.start, argument.stop, argument.step)
            return slice(*(self._mapped(p) for p in parts))
        return argument

    def _read(self, value: Any) -> Any:
        """A value with its constants in the graph."""
        if isinstance(value, _Constant):
            return self.builder.tensor(value.value, value.name)
        return tuple(map(self._read, value)) if isinstance(value, tuple) else value

    def _value(self, node: Node) -> Any:
        recorded = self.values[node]
        if node in self.constants:
            return _constants(self.constants[node], node.name)
        if node.op == "placeholder":
            if not isinstance(recorded, TensorInfo):
                return recorded
            new = self.builder.placeholder(node.name, recorded.shape, recorded.dtype)
            set_provenance(new, Provenance((), ("input",), ""))
            return new
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "call_module":
            return self._module(node)
        name = canonical_name(node)
        if name in _ASSERTIONS:
            return None
        if not has_tensor(recorded):
            self._check_static(node, name)
            return recorded
        args, kwargs = self._mapped(node.args), self._mapped(node.kwargs)
        if isinstance(node.target, type) and issubclass(node.target, tuple):
            return args  # a namedtuple
        return self._call(node, recorded, name, node.target, args, kwargs)

    def _check_static(self, node: Node, name: str) -> None:
        """A constant made from a tensor's values, not from its shape, must not be frozen."""
        tensors = [n for n in node.all_input_nodes if has_tensor(self.values[n])]
        if is_dataclass(node.target):
            raise CaptureError(
                f"the model puts its results into a {name}",
                where=source_line(node) or node.name,
                why="a graph knows tuples, lists and dicts",
                remedy="return one of them",
            )
        if tensors and name not in _SHAPE_QUERIES:
            raise CaptureError(
                f"the model computes a Python value from the contents of a tensor ({name})",
                where=source_line(node) or node.name,
                why="the graph would freeze the value of the example inputs",
                remedy="express it with tensor operations, or move it out of the model",
            )

    def _attribute(self, target: str) -> Any:
        value: Any = self.gm
        for part in target.split("."):
            value = getattr(value, part)
        return self.builder.tensor(value, target) if isinstance(value, Tensor) else value

    def _module(self, node: Node) -> Any:
        path = str(node.target)
        module = self.gm.get_submodule(path)
        if type(module) not in MODULES:
            raise CaptureError(
                f"module {path} of type {type(module).__name__} is a leaf of this graph",
                where=path,
                why="its operations are hidden from the graph",
                remedy="pass the nn.Module itself instead of a GraphModule traced with this leaf",
            )
        given = inspect.signature(type(module).forward).bind(module, *node.args, **node.kwargs)
        x, *more = self._mapped(given.args[1:])
        if more:
            more = [torch.empty(shape_of(x), device="meta"), *more]
        return self._functional(node, path, module, MODULES[type(module)](module, *more), x)

    def _functional(
        self, node: Node, path: str, module: nn.Module, functional: Functional, x: Node
    ) -> Any:
        if functional.before is not None:
            function, args = functional.before.function, functional.before.args
            assert callable(function)
            padded = TensorInfo(function(torch.empty(shape_of(x), device="meta"), *args))
            x = self._call(node, padded, "pad", function, (x, *args), {}, path)
        lifted = tuple(
            self._parameter(path, module, a) if isinstance(a, Parameter) else a
            for a in functional.args
        )
        function, recorded = functional.function, self.values[node]
        name = function if isinstance(function, str) else function.__name__
        args, kwargs = (x, *lifted), functional.kwargs
        return self._call(node, recorded, name, function, args, kwargs, path, type(module))

    def _parameter(self, path: str, module: nn.Module, parameter: Parameter) -> Node | None:
        value = getattr(module, parameter.name)
        return None if value is None else self.builder.tensor(value, f"{path}.{parameter.name}")

    def _call(
        self,
        node: Node,
        recorded: Any,
        name: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        path: str = "",
        leaf: type[nn.Module] | None = None,
    ) -> Any:
        path, source = path or _module_path(node), source_line(node)
        place = ", ".join(filter(None, (path, source))) or node.name
        call, before = Call(self.builder, recorded, node.name, place), set(self.builder.graph.nodes)
        handler = HANDLERS.get(name) if _known(target) else None
        value = NotImplemented if handler is None else handled(handler, call, args, kwargs)
        if value is NotImplemented:
            value = self._foreign(node, recorded, target, args, kwargs)
        kind, module = (name, _module_type(node)) if leaf is None else (leaf.__name__, leaf)
        modules = (module,) if module else ()
        origin = Provenance((path,) if path else (), (kind,), source, modules)
        for new in self.builder.graph.nodes:
            if new not in before and new.op != "get_attr":
                set_provenance(new, origin)
        return value

    def _foreign(self, node: Node, recorded: Any, target: Any, args: Any, kwargs: Any) -> Any:
        """An operator outside the dialect: kept as it is, later a float island."""
        if node.op == "call_module":
            assert callable(target)
        if node in self.overwritten:
            target, args, kwargs = out_of_place(target, args, kwargs, source_line(node))
        op = "call_method" if isinstance(target, str) else "call_function"
        new = self.builder.graph.create_node(op, target, args, kwargs, node.name)
        return self._results(new, recorded)

    def _results(self, new: Node, recorded: Any) -> Any:
        """Shapes of a foreign call; a call with several results becomes a tuple of getitems."""
        if isinstance(recorded, TensorInfo):
            set_value(new, recorded.shape, recorded.dtype)
            return new
        results = []
        for i, item in enumerate(recorded):
            part = self.builder.graph.call_function(operator.getitem, (new, i))
            results.append(self._results(part, item) if has_tensor(item) else item)
        return tuple(results)


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """A tensor that joins the new graph when something reads it."""

    value: Tensor
    name: str


def _constants(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        return _Constant(value, name)
    return tuple(_constants(item, f"{name}_{i}") for i, item in enumerate(value))


def _known(target: Any) -> bool:
    """Whether a name may be trusted: torch's own function, an operator, or a method."""
    if isinstance(target, str):
        return True
    module = getattr(target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "torchvision", "_operator", "math", "builtins")


def _module_path(node: Node) -> str:
    """Path of the innermost module a functional call was made in."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(v[0] if isinstance(v, tuple) else v) for v in stack.values()]
    paths = [p.removeprefix("L['self'].").removeprefix("L['self']") for p in paths]
    return paths[-1] if paths else ""


def _module_type(node: Node) -> type[nn.Module] | None:
    """Type of the innermost module, if it is a variant of one that is an operator, not a block."""
    stack = node.meta.get("nn_module_stack") or {}
    types = [v[1] for v in stack.values() if isinstance(v, tuple)]
    kind = types[-1] if types else None  # torch.export has names instead
    return kind if isinstance(kind, type) and issubclass(kind, tuple(MODULES)) else None
