"""The rules of a configuration, resolved for every operator of a graph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from torch.fx import GraphModule, Node

from fxquant.config import Config, OpConfig, OpType
from fxquant.errors import ConfigError
from fxquant.ir import meta
from fxquant.ops.arithmetic import requantize


class Choices:
    """The configuration resolved for each operator."""

    def __init__(self, gm: GraphModule, config: Config) -> None:
        self.config = config
        operators = [n for n in gm.graph.nodes if n.op.startswith("call_")]
        self.chosen: dict[Node, tuple[OpConfig | None, str]] = dict.fromkeys(
            operators, (config.default, "default")
        )
        self.paths = sorted({path for n in operators for path in meta.provenance(n).modules})
        self._first_last(operators)
        for kind in _nearest_last(config.types):
            label = kind if isinstance(kind, str) else kind.__name__
            hit = [n for n in operators if _is_kind(n, kind)]
            self._rule(f"types[{label}]", config.types[kind], hit)
        for pattern, op_config in config.patterns.items():
            matches = re.compile(pattern).fullmatch
            hit = [n for n in operators if any(map(matches, meta.provenance(n).modules))]
            self._rule(f"patterns[{pattern!r}]", op_config, hit)
        for name, op_config in config.names.items():
            hit = [n for n in operators if name in (n.name, *meta.provenance(n).modules)]
            remedy = _container_remedy(name, self.paths)
            self._rule(f"names[{name!r}]", op_config, hit, remedy)

    def _first_last(self, operators: list[Node]) -> None:
        """Weights and results of the first and last layer, and the grids the last one reads."""
        special = self.config.first_last
        weighted = [n for n in operators if meta.is_weighted(n)]
        if special is None or not weighted or self.config.default is None:
            return
        bits = replace(
            self.config.default,
            weight_bits=special.weight_bits,
            activation_bits=special.activation_bits,
        )
        first, last = weighted[0].args[1], weighted[-1].args[1]
        for node in weighted:  # all that share a weight with these layers share its width
            if node.args[1] in (first, last):
                self.chosen[node] = (bits, "first_last")
        for node in weighted:
            source = meta.grid_owner(node.all_input_nodes[0])
            if node.args[1] is last and meta.opdef(source) is not None:
                base = self.chosen[source][0]
                assert base is not None
                wider = replace(base, activation_bits=special.activation_bits)
                self.chosen[source] = (wider, "first_last")

    def _rule(self, label: str, config: OpConfig | None, hit: list[Node], remedy: str = "") -> None:
        if not hit:
            raise ConfigError(
                f"the rule {label} matches nothing",
                where="Config",
                why="a misspelt rule would silently leave the default in force",
                remedy=remedy or f"known module paths start with: {', '.join(self.paths[:12])} ...",
            )
        for node in hit:
            self.chosen[node] = (config, label)

    def of(self, node: Node) -> tuple[OpConfig | None, str]:
        """Configuration of an operator, for a copy that of its value, and its rule."""
        if node.target is requantize:
            node = meta.grid_owner(node.all_input_nodes[0])
        return self.chosen[node]


def _is_kind(node: Node, kind: OpType) -> bool:
    origin = meta.provenance(node)
    if isinstance(kind, str):
        return kind in origin.kinds or kind == getattr(node.target, "__name__", "")
    return any(issubclass(t, kind) for t in origin.types)


def _nearest_last(kinds: Iterable[OpType]) -> list[OpType]:
    """In their order, but subclasses behind their bases: later rules win."""
    types = [k for k in kinds if not isinstance(k, str)]
    return sorted(
        kinds, key=lambda k: 1 if isinstance(k, str) else sum(issubclass(k, t) for t in types)
    )


def _container_remedy(name: str, paths: list[str]) -> str:
    """How to name all that is in a module which holds others; "" if it is none."""
    if not any(path.startswith(f"{name}.") for path in paths):
        return ""
    return f'it holds other modules: use patterns={{r"{re.escape(name)}\\..*": ...}}'
