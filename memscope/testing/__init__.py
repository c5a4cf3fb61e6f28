"""Recordings and models whose answers are known by construction, for tests and studies."""
