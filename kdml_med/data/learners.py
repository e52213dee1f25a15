"""Which student reads the label of a training sample, where each has patients of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdml_med.errors import InputError
from kdml_med.words import counted


def deal_patients(
    patients: Sequence[str], labels: npt.NDArray[np.int64], classes: Sequence[str], students: int, *, seed: int
) -> npt.NDArray[np.int64]:
    """Share the patients out to students, at random, so that all students have about as many of each kind.

    A kind is the set of classes that a patient's samples have. The shares depend on the seed and on the patients, not
    on the order of the samples.

    Args:
        patients: of each sample.
        labels: [samples], class index of each.
        classes: names of the classes, for messages.
        students: how many share.
        seed: of the draw.

    Returns:
        int64, [samples], number of the student that reads the label, from 0.

    Raises:
        InputError: a student would have no sample of a class.
    """
    names, of_sample = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    has = np.zeros((len(names), len(classes)), np.bool_)
    has[of_sample, labels] = True
    # Patients at random, and those of a kind behind each other: dealt in turns, every student gets some of each.
    drawn = np.random.default_rng(seed).permutation(len(names))
    ordered = drawn[np.lexsort(has[drawn].T)]
    student_of = np.empty(len(names), np.int64)
    student_of[ordered] = np.arange(len(names)) % students
    learners = student_of[of_sample]
    for number, name in enumerate(classes):
        of_class = labels == number
        if of_class.any() and len(np.unique(learners[of_class])) < students:
            there = counted(int(has[:, number].sum()), "patient")
            raise InputError(
                f"the training split has {there} of class {name!r}: shared out to {students} students, one of them "
                "has none. Leave --own_labels out, or take fewer students."
            )
    return learners
