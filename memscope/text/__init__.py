"""Reads text: corpora, sentences, facts, the tokenizer. Text for readers is written by ``report`` and ``export``."""
