"""What a comparison shows, in words that claim no more than the figures do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pandas as pd

from kdml_med.experiments.report.arm_words import ROLE_WORDS
from kdml_med.metrics.power import pairs_needed
from kdml_med.report import wording
from kdml_med.report.caution import FEW, caution
from kdml_med.report.doubts import ALIKE, SAME_ERRORS, UNDERFIT, UNTAUGHT, WEAK_TEACHER
from kdml_med.report.tables import records
from kdml_med.words import counted

SIGNIFICANT = 0.05
FEW_SEEDS = 3
SMALL_DIFFERENCE = 0.002
"""What the sample-size line names the number of seeds for."""


DOUBT_WORDS = {
    WEAK_TEACHER: (
        "The teacher is no better than its students on the validation split",
        "Distillation has little to give there, whatever the arm is called.",
    ),
    ALIKE: (
        f"The students err alike on the validation split (correlation of their errors above {SAME_ERRORS})",
        "Neither peers nor an ensemble can add much there.",
    ),
    UNDERFIT: (
        "The networks have not learned all that the training samples hold",
        "Longer trainings may change the order of arms.",
    ),
    UNTAUGHT: (
        "The epoch that is kept lies in the head start of the teacher",
        "The students there have not learned from it.",
    ),
}


class Outcome(StrEnum):
    """What one comparison says about the reference."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "no difference shown"


def outcome(row: Mapping[str, Any]) -> Outcome:
    """Judge one comparison.

    A difference counts only when the interval excludes 0 and the p value after Holm is below 0.05: the interval speaks
    of other patients and other trainings, the p value of all comparisons together, and neither is enough alone.

    Args:
        row: of a comparison table.
    """
    low, high, p_value = float(row["low"]), float(row["high"]), float(row["p_holm"])
    # Written so that a NaN, which compares as false, leaves it undecided.
    if not (p_value < SIGNIFICANT and (low > 0 or high < 0)):
        return Outcome.UNDECIDED
    return Outcome.BETTER if (low > 0) != (row["metric"] in wording.LOWER_IS_BETTER) else Outcome.WORSE


def verdict(comparisons: pd.DataFrame, words: Mapping[str, str]) -> str:
    """One or two sentences on one family of comparisons.

    Args:
        comparisons: rows of one version, evaluation, role and metric; at least one.
        words: what to call each arm.
    """
    first = comparisons.iloc[0]
    reference = words[first["reference"]]
    arms: dict[Outcome, list[str]] = {one: [] for one in Outcome}
    for row in records(comparisons):
        arms[outcome(row)].append(words[row["arm"]])
    # One training of each arm may differ from the next one of the same arm by as much.
    only = " with this one seed" if int(comparisons["seeds"].min()) == 1 else ""
    parts = []
    if arms[Outcome.BETTER]:
        parts.append(f"{reference} is better than {wording.listed(arms[Outcome.BETTER])}{only}")
    if arms[Outcome.WORSE]:
        parts.append(f"{reference} is worse than {wording.listed(arms[Outcome.WORSE])}{only}")
    if arms[Outcome.UNDECIDED]:
        nothing = "no difference is shown" if parts else f"no difference of {reference} is shown"
        parts.append(f"{nothing} to {wording.listed(arms[Outcome.UNDECIDED])}")
    return f"{endpoint_words(first)}: {'; '.join(parts)}."


def endpoint_words(row: Mapping[str, Any] | pd.Series) -> str:
    """As in "Ensemble of the students, AUROC" and "Students, mean of each alone, Brier score (lower is better)".

    Args:
        row: of a comparison table.
    """
    role = ROLE_WORDS.get(row["role"], row["role"])
    return f"{wording.capital(role)}, {wording.directed(row['metric'])}"


def difference_line(row: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """As in "KD + ML − labels only: +0.012 (−0.020 to 0.045), p = 0.41 after Holm: no difference shown"."""
    said = {
        Outcome.BETTER: f"{words[row['reference']]} is better",
        Outcome.WORSE: f"{words[row['arm']]} is better",
        Outcome.UNDECIDED: str(Outcome.UNDECIDED),
    }[outcome(row)]
    numbers = wording.difference_with_interval(row["difference"], row["low"], row["high"])
    compared = f"{words[row['reference']]} {wording.MINUS} {words[row['arm']]}"
    return f"{compared}: {numbers}, {wording.p_words(row['p_holm'])} after Holm: {said}"


def doubt_lines(doubts: pd.DataFrame, words: Mapping[str, str]) -> list[str]:
    """What makes arms poor witnesses of what they are to show, one sentence for each doubt.

    Args:
        doubts: rows of one version, see ``kdml_med.experiments.doubts.doubt_table``.
        words: what to call each arm.
    """
    lines = []
    for doubt, said in DOUBT_WORDS.items():
        own = records(doubts[doubts["doubt"] == doubt]) if len(doubts) else []
        if own:
            arms = [f"{words[row['arm']]} ({int(row['trainings'])} of {int(row['of'])} trainings)" for row in own]
            lines.append(f"{said[0]}: {wording.listed(arms)}. {said[1]}")
    return lines


def cautions(comparisons: pd.DataFrame) -> list[str]:
    """Why one family of comparisons should not be relied upon; empty when nothing stands out.

    Args:
        comparisons: rows of one version, evaluation, role and metric; at least one.
    """
    units, seeds = int(comparisons["units"].min()), int(comparisons["seeds"].min())
    noun = str(comparisons["unit"].iloc[0])
    found = [text] if (text := caution({noun: units}, enough=FEW)) else []
    if seeds < FEW_SEEDS:
        found.append(
            f"Only {counted(seeds, 'seed')}: how much a training differs from the next of its kind is hardly "
            "known, and a difference may be that of two trainings and not of two methods."
        )
    smallest = smallest_p(comparisons)
    if smallest >= SIGNIFICANT:
        found.append(
            f"With {counted(units, noun)} and {counted(len(comparisons), 'comparison')} no p value after "
            f"Holm can be below {wording.figure(smallest)}: this data set cannot show a difference, however large."
        )
    return found


def sample_size(comparisons: pd.DataFrame, words: Mapping[str, str]) -> str:
    """What difference the seeds of one family of comparisons could have shown; "" where no spread over seeds is known.

    Args:
        comparisons: rows of one version, evaluation, role and metric; at least one.
        words: what to call each arm.
    """
    known = comparisons[comparisons["detectable"] > 0].sort_values("detectable", kind="stable")
    if known.empty:
        return ""
    rows = records(known)
    ends = [rows[0]] if len(rows) == 1 else [rows[0], rows[-1]]
    found = " to ".join(f"{detectable_words(row['detectable'])} (from {words[row['arm']]})" for row in ends)
    alpha = SIGNIFICANT / max(1, int(comparisons["p_value"].notna().sum()))
    needed = [pairs_needed(SMALL_DIFFERENCE, float(row["seed_sd"]), alpha=alpha) for row in ends]
    counts = ["more than 100,000" if pairs is None else f"{pairs:,}" for pairs in needed]
    # Folds that judge the same samples are repetitions, too.
    least, most = int(known["pairs"].min()), int(known["pairs"].max())
    trainings = f"{most} seeds" if (known["pairs"] == known["seeds"]).all() else f"{most} pairs of trainings"
    return (
        f"{endpoint_words(rows[0])}: {trainings if least == most else f'{least} to {trainings}'} could have shown a "
        f"difference of {found}; {SMALL_DIFFERENCE} needs {' to '.join(dict.fromkeys(counts))}."
    )


def detectable_words(difference: float) -> str:
    """A difference that could be shown; metrics lie between 0 and 1, so that beyond 1 none could."""
    return "more than 1" if difference > 1 else wording.figure(difference, 4)


def smallest_p(comparisons: pd.DataFrame) -> float:
    """The smallest p value after Holm that a family of comparisons can give; NaN where none is defined.

    Of all 2^n swaps of n units, the observed one and its opposite are always at least as extreme as the observed one;
    of randomly drawn swaps, the observed one counts. Holm multiplies the smallest by the number of tests.
    """
    tested = comparisons[comparisons["p_value"].notna()]
    if tested.empty:
        return math.nan
    possible = [
        2 / 2 ** int(row["units"]) if row["exact"] else 1 / (int(row["permutations"]) + 1) for row in records(tested)
    ]
    return min(1.0, min(possible) * len(tested))
