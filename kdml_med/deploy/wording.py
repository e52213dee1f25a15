"""Words that every output of a prediction has in common; see ``kdml_med.words``, too."""

from __future__ import annotations


def three_digits(probability: float) -> str:
    """A probability, and neither 0 nor 1: a network that rounds to one of them is not certain, either."""
    return "<0.001" if probability < 0.0005 else ">0.999" if probability >= 0.9995 else f"{probability:.3f}"
