"""A bank whose entries are text: its token ids, the whole words in them, and the search by words; no torch."""
