"""Look at the graphs of a network on its way from PyTorch to integers.

    python -m examples.inspect_graphs

Prints the operators of every stage and the Basic-Units, then writes build/graphs/: report.html, and
the graph as network.svg, network.dot (for Graphviz) and network.graphml (from networkx).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import networkx as nx
import torch
from torch.fx import GraphModule

import fxquant
from examples.digits_quickstart import DigitsNet, digits


def operators(graph_module: GraphModule) -> str:
    """`conv2d 7, add 2`: the operators of a graph by frequency."""
    calls = [n for n in graph_module.graph.nodes if n.op == "call_function"]
    counts = Counter(n.target.__name__ for n in calls)
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def main(output: Path) -> None:
    torch.manual_seed(0)
    images = digits()[0][:64]
    model = DigitsNet().eval()
    prepared = fxquant.prepare(model, images[:1], config=fxquant.W8A8)
    print("annotated: ", operators(prepared.graph))
    print("\nBasic-Units, and the grid every value will have:")
    print(prepared)

    fxquant.calibrate(prepared, images, progress=False)
    quantized = fxquant.convert(prepared)
    print("\nwith Q/DQ: ", operators(quantized.graph_module))
    print("integer:   ", operators(quantized.integer))

    graph = quantized.graph("networkx")
    path = nx.dag_longest_path(graph)
    print(f"\nlongest path: {len(path)} of {len(graph)} nodes")
    integers = sum(not data["float_reason"] for _, data in graph.nodes(data=True))
    print(f"integer: {integers} of {len(graph)} nodes")

    output.mkdir(parents=True, exist_ok=True)
    (output / "network.svg").write_text(quantized.graph("svg"), encoding="utf-8")
    (output / "network.dot").write_text(quantized.graph("dot"), encoding="utf-8")
    nx.write_graphml(nx.DiGraph(graph.edges), output / "network.graphml")
    found = fxquant.inspect(quantized, images[:16], model=model)
    print(f"\n{found}")
    print(f"\nsee {found.write(output / 'report.html')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Look at the graphs of a network.")
    parser.add_argument("--smoke", action="store_true", help="changes nothing: it takes seconds")
    parser.add_argument("--output", type=Path, default=Path("build/graphs"))
    main(parser.parse_args().output)
