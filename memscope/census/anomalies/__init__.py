"""Which entries, pairs and layers stand out, tested at a stated error rate while a recording is counted."""
