"""The map of a bank: in what space entries are compared, their places, clusters and names. It is drawn in ``app``."""
