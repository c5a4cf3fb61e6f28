"""Statistics of plain arrays, with their errors. Nothing here knows what is counted; counting is in ``census``."""
