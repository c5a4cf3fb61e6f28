"""The configuration of a run: its sections and how YAML becomes them. What is done with a value stands where it is used."""
