"""Texts and their tokens: choosing a document, typing a text, letting the model go on, what one token selected."""
