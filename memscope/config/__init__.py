"""The configuration of a run: its sections, and how YAML becomes them. A value is used where its subject is."""
