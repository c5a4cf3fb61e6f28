"""Text that comes in: corpora, sentences, facts and the tokenizer. Text that goes out is in ``report`` and ``export``."""
