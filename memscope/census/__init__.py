"""Counting a recording: usage, preferences, reading, information, neighbours. ``query`` reads what is written."""
