"""The quantized network as a graph for other tools: networkx, Graphviz DOT, SVG."""

from __future__ import annotations

import networkx as nx

from fxquant.inspection.facts import node_facts
from fxquant.inspection.picture import graph_picture, grid_text
from fxquant.ir.units import units
from fxquant.model import Quantized


def network_graph(quantized: Quantized) -> nx.DiGraph:
    """Inputs and operators as nodes, values as edges; constants are left out.

    Every node has the attributes `operator`, `module`, `unit` (the name of its Basic-Unit, "" for
    inputs), `shape` (batch included), `weight_bits` (None without weight), `bits`, `scale` and
    `zero_point` of the result (None where it is float) and `float_reason` ("" on integers). All are
    plain Python values.
    """
    unit_of = {name: unit.name for unit in units(quantized.calibrated) for name in unit.nodes}
    graph = nx.DiGraph()
    for fact in node_facts(quantized):
        graph.add_node(
            fact.node,
            operator=fact.operator,
            module=fact.module,
            unit=unit_of.get(fact.node, ""),
            shape=fact.shape,
            weight_bits=fact.weight.bits if fact.weight else None,
            bits=fact.bits,
            scale=fact.scale,
            zero_point=None if fact.scale is None else fact.zero_point,
            float_reason=fact.float_reason,
        )
        graph.add_edges_from((source, fact.node) for source in fact.sources)
    return graph


def dot(quantized: Quantized) -> str:
    """The network in the DOT language of Graphviz, one cluster a Basic-Unit."""
    facts = {f.node: f for f in node_facts(quantized)}
    lines = [
        "digraph network {",
        '  node [shape=box, style="rounded,filled", fillcolor="#dbe9fb", fontname="sans-serif"];',
        '  graph [style=rounded, color="#c0c8d4", fontname="sans-serif", labeljust=l];',
    ]

    def declare(name: str, indent: str) -> None:
        fact = facts[name]
        bits = f" w{fact.weight.bits}" if fact.weight else ""
        shape = "×".join(map(str, fact.shape[1:]))
        label = _quoted("\n".join((fact.node, fact.operator + bits, shape, grid_text(fact))))
        look = ', style="rounded,filled,dashed", fillcolor="#fbe3c4"' if fact.float_reason else ""
        lines.append(f"{indent}{_quoted(name)} [label={label}{look}];")

    parts = units(quantized.calibrated)
    inside = {name for unit in parts for name in unit.nodes}
    for name in (n for n in facts if n not in inside):
        declare(name, "  ")
    for i, unit in enumerate(parts):
        lines += [f"  subgraph cluster_{i} {{", f"    label={_quoted(unit.name)};"]
        for name in unit.nodes:
            declare(name, "    ")
        lines.append("  }")
    for fact in facts.values():
        lines += [f"  {_quoted(source)} -> {_quoted(fact.node)};" for source in fact.sources]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def svg(quantized: Quantized) -> str:
    """The picture of the report as an SVG file of its own, for light and dark screens."""
    facts = node_facts(quantized)
    return str(graph_picture(facts, units(quantized.calibrated), {}, standalone=True)) + "\n"
