"""Whole slides from their files to predictions."""
