"""Text that comes in: corpora, sentences, facts, the tokenizer. Text that goes out is in ``report``, ``export``."""
