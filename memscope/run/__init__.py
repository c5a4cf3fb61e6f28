"""A run on disk and a model that is loaded from it: checkpoints, starts of entries, hooks. How it was trained is in ``train``."""
