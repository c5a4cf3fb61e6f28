"""Experiments on text layers: facts that their sentences state, and sentences that are changed."""
