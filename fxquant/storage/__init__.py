"""`.fxq` files: one calibrated graph as safetensors (codes packed at their width) plus JSON."""

from fxquant.storage.fxq import load, save

__all__ = ["load", "save"]
