"""The gate-bias report of one recording: its figures, tables, method and files. Findings are in ``report``."""
