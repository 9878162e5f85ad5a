"""Arithmetic only: knows no graph, no module and no TVM."""
