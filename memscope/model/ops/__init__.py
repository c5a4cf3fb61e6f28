"""References in PyTorch and loops that equal them: C++ in ``cpu/``, Triton's beside it. Layers are in ``model``."""
