"""Makes rows from a model and a text: of a corpus, a prompt, checkpoints. Their format is in ``recording``."""
