"""Figures of reports and app: functions from tables to matplotlib figures."""
