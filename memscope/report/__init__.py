"""A recording in words, figures and tables for a reader: findings, health, the gate-bias report. No torch."""
