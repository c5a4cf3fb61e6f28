"""See inside a language model's memory."""
