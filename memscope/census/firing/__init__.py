"""On what every entry fires: contexts, tokens, words, and the headline that names it."""
