"""The language model and its memory: layers, gate, bank, read. Training is in ``train``, fast loops in ``ops``."""
