"""A recording in the formats of other tools, and as a folder of pages. No torch."""
