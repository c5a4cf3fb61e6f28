"""Training: the loop, the optimiser, many processes, evaluation. The model itself is in ``model``, its folder in ``run``."""
