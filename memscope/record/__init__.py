"""From a model and text to recorded rows: a corpus, a prompt, a run's checkpoints. The format on disk is in ``recording``."""
