"""Trained networks in use: on slides and videos, as pictures, as files for other programs."""
