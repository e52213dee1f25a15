"""What makes a training a poor witness: its teacher, its peers, or too little learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from kdml_med.keys import NetworkName

WEAK_TEACHER, ALIKE, UNDERFIT, UNTAUGHT = "weak_teacher", "alike", "underfit", "untaught"
DOUBTS = (WEAK_TEACHER, ALIKE, UNDERFIT, UNTAUGHT)
"""Keys in metrics.json under ``WARNINGS``."""
WARNINGS = "warnings"
SAME_ERRORS = 0.98
"""Correlation of the errors of students above which an ensemble has hardly anything to average."""
COINCIDE = 1.05
"""A loss on validation samples up to this multiple of that on training samples is no higher: nothing was learned by
heart, and so mostly not all that could be learned. Augmentation alone makes the loss on training samples the higher one
by more than this as soon as a network fits them."""
CEILING = 0.99
"""From this score on, low losses may coincide, and a teacher be no better, because the task is easy."""


def training_warnings(
    scores: Mapping[str, float],
    *,
    figure: str,
    correlation: float,
    losses: Mapping[str, tuple[float, float]],
    taught: bool = True,
) -> dict[str, str]:
    """What a reader has to know of a training before comparing it with others.

    Args:
        scores: of the teacher and the students on the validation split, the higher the better; NaN where not defined.
        figure: what they are called.
        correlation: of the errors of the students there, mean over their pairs; NaN where it is not defined.
        losses: of each student against the labels in the epoch that is kept, on training and on validation samples;
            empty where they are not known.
        taught: False where students had not learned from their teacher yet in that epoch.

    Returns:
        A sentence for each of the keys above that applies.
    """
    students = {name: value for name, value in scores.items() if name != NetworkName.TEACHER}
    teacher, mean = scores.get(NetworkName.TEACHER, math.nan), fmean(students.values())
    found = {}
    if teacher <= mean:
        advice = "There is little to learn from it: take a stronger one, or train it longer."
        if mean >= CEILING:
            advice = "The split is too easy to tell a better teacher: judge ways of training on harder samples."
        found[WEAK_TEACHER] = (
            f"The teacher is no better than its students on the validation split: {figure} {teacher:.3f}, students "
            f"{mean:.3f} on average. {advice}"
        )
    if correlation > SAME_ERRORS:
        found[ALIKE] = (
            f"The students err alike on the validation split: correlation of their errors {correlation:.3f}. Their "
            "ensemble gains next to nothing, nor do they from each other: give them other networks, weights or data."
        )
    if losses and mean < CEILING:
        training, validation = (fmean(values) for values in zip(*losses.values(), strict=True))
        if validation <= COINCIDE * training:
            found[UNDERFIT] = (
                f"The students' loss against the labels is no higher on validation samples ({validation:.3f}) than on "
                f"training samples ({training:.3f}): they have not learned all that the samples hold. Train longer, or "
                "with a higher learning rate, before ways of training are compared."
            )
    if not taught:
        found[UNTAUGHT] = (
            "The epoch that is kept lies in the head start of the teacher: these students have not learned from it. "
            "Train longer, or lower --teacher_warmup_epochs."
        )
    return found
