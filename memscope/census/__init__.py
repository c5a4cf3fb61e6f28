"""Counting a recording: usage, preferences, reading, information, neighbours. No torch; ``query`` reads what is written here."""
