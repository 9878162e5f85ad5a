"""Measurements against other tools. Run as modules: `python -m benchmarks.latency`."""
