"""Trained networks in use: drawing what they found, and how fast they are."""
