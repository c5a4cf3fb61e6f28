"""From a model and text to recorded rows: of a corpus, a prompt, checkpoints. The format is in ``recording``."""
