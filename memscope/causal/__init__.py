"""Experiments on a model: intervene, and measure what changes. What is only observed is in ``census``."""
