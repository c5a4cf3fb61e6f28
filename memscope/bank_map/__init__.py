"""The map of a bank: the space entries are compared in, their places, clusters, names. ``app`` draws it."""
