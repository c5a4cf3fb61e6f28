"""The language model and its memory: layers, gate, bank, read. How it is trained is in ``train``; fast loops are in ``ops``."""
