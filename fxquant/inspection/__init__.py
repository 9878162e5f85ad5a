"""Looking at a quantized network: per-layer errors, timing, and the HTML report."""

from fxquant.inspection.errors import LayerError, Similarity, layer_errors
from fxquant.inspection.html import report
from fxquant.inspection.timing import Timing, interleaved

__all__ = ["LayerError", "Similarity", "Timing", "interleaved", "layer_errors", "report"]
