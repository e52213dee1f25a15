"""The check that every binary metric begins with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def as_binary(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Labels as bool [n] and probabilities as float64 [n].

    Raises:
        ValueError: they are not vectors of one length, or a label is neither 0 nor 1.
    """
    truth = np.asarray(labels)
    scores = np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != scores.shape:
        raise ValueError(
            f"labels and probabilities must be vectors of one length, got shapes {truth.shape} and {scores.shape}."
        )
    wrong = truth[(truth != 0) & (truth != 1)]
    if len(wrong):
        raise ValueError(f"labels must be 0 or 1, found {wrong[0]}; leave unlabelled samples out.")
    return truth.astype(bool), scores
