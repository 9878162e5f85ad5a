"""Graph views: the same network for networkx, Graphviz and browsers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from xml.etree.ElementTree import Element

import networkx as nx
import pytest

import fxquant
from fxquant.errors import ConfigError
from fxquant.inspection import dot, network_graph, svg
from fxquant.inspection.facts import node_facts
from fxquant.ir import meta
from fxquant.ir.units import units
from tests.inspection.nets import quantized_net


def test_the_networkx_graph_has_every_value_with_its_grid() -> None:
    quantized = quantized_net(fxquant.W4A8.with_rules(names={"gate.2": None}))
    graph = network_graph(quantized)
    facts = {f.node: f for f in node_facts(quantized)}
    assert set(graph) == set(facts)
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph.predecessors("mul")) == {"left_2", "gate_2"}
    left = graph.nodes["left_0"]
    assert (left["operator"], left["weight_bits"], left["bits"]) == ("conv2d", 4, 8)
    assert left["scale"] == facts["left_0"].scale and left["unit"] == "left.2"
    assert graph.nodes["gate_2"]["float_reason"].startswith("left in float")
    head = graph.nodes["head"]
    assert head["bits"] is None and head["scale"] is None and head["zero_point"] is None


def test_dot_has_a_cluster_a_unit_and_balanced_braces() -> None:
    quantized = quantized_net()
    text = dot(quantized)
    assert text.count("subgraph cluster_") == len(units(quantized.calibrated))
    assert text.count("{") == text.count("}")
    assert '"left_0" -> "left_2";' in text
    assert "conv2d w8" in text
    assert text == dot(quantized_net())


def test_dot_quotes_what_names_may_hold() -> None:
    quantized = quantized_net()
    for node in quantized.calibrated.graph.nodes:
        if node.name == "stem":
            meta.set_provenance(node, meta.Provenance(('a"b\\c',)))
    assert 'label="a\\"b\\\\c";' in dot(quantized)


def test_svg_is_a_file_of_its_own() -> None:
    quantized = quantized_net()
    root = ElementTree.fromstring(svg(quantized))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    texts = [t.text for t in root.iter(f"{space}text")]
    assert texts.count("conv2d w8") == 4 and "linear w8" in texts
    assert root.find(f"{space}style") is not None
    assert root.find(f".//{space}a") is None


def test_edges_end_at_boxes() -> None:
    root = ElementTree.fromstring(svg(quantized_net()))
    space = "{http://www.w3.org/2000/svg}"

    def number(element: Element, key: str) -> float:
        return float(element.attrib[key])

    boxes = [r for r in root.iter(f"{space}rect") if "node" in r.attrib["class"]]
    tops = {(number(b, "x") + number(b, "width") / 2, number(b, "y")) for b in boxes}
    edges = [p.attrib["d"] for p in root.iter(f"{space}path") if p.attrib["class"] == "edge"]
    assert len(edges) == network_graph(quantized_net()).number_of_edges()
    for edge in edges:
        numbers = [float(t) for t in edge.replace("M", " ").replace("C", " ").replace("V", " ")
                   .replace("H", " ").replace("v", " ").split()]  # fmt: skip
        ends = set(pairwise(numbers)) | {(numbers[-2], numbers[-1])}
        assert ends & tops, edge


@pytest.mark.parametrize("form", ["networkx", "dot", "svg"])
def test_the_method_gives_the_same(form: str) -> None:
    quantized = quantized_net()
    view = quantized.graph(form)
    expected = {"networkx": network_graph, "dot": dot, "svg": svg}[form](quantized)
    if form == "networkx":
        assert list(view.edges) == list(expected.edges)
    else:
        assert view == expected


def test_an_unknown_form_is_an_error() -> None:
    with pytest.raises(ConfigError, match='"networkx", "dot" or "svg"'):
        quantized_net().graph("png")
