"""TVM backend."""
