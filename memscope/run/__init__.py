"""A run on disk and the model loaded from it: checkpoints, starts of entries, hooks. Training is in ``train``."""
