"""Looking at a quantized network: errors, histograms, graph views, timing, the HTML report."""

from fxquant.inspection.device import KernelTime, MemoryMap, Placed, Profiled
from fxquant.inspection.errors import LayerError, layer_errors
from fxquant.inspection.graph import dot, network_graph, svg
from fxquant.inspection.histogram import Histogram
from fxquant.inspection.inspection import Inspection, Layer, inspect, report
from fxquant.inspection.measure import Measurement, NoiseShares
from fxquant.inspection.similarity import Similarity
from fxquant.inspection.timing import Timing, interleaved

__all__ = [
    "Histogram",
    "Inspection",
    "KernelTime",
    "Layer",
    "LayerError",
    "Measurement",
    "MemoryMap",
    "NoiseShares",
    "Placed",
    "Profiled",
    "Similarity",
    "Timing",
    "dot",
    "inspect",
    "interleaved",
    "layer_errors",
    "network_graph",
    "report",
    "svg",
]
