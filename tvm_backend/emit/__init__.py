"""Emitters: one operator family a file, each makes the kernels of a reference operator."""
