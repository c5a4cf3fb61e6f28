"""Triton kernels for a GPU, with the names and arguments of the loops of ``cpu/``; ``loops`` has them all."""
