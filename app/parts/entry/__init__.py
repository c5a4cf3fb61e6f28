"""One entry: its card, its place in the table, another one beside it, pins with notes."""
