"""Makes the map of a bank: the space that compares entries, their places, clusters, names. ``app`` draws it."""
