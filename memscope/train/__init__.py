"""Training: the loop, the optimiser, many processes, evaluation. The model is in ``model``, its folder in ``run``."""
