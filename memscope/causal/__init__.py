"""Experiments on a model: intervene, and measure the change. Observation without intervention is in ``census``."""
