"""Arms of a plan side by side, and the reference arm minus each other one.

Only whole repetitions count: a seed enters an arm when all its folds are done, and a comparison uses the seeds that
both arms have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import pandas as pd

from kdml_med.experiments.plan import METRICS
from kdml_med.experiments.results import Results
from kdml_med.experiments.scores import Role, load_scores, resampling_unit, role_networks
from kdml_med.keys import Task
from kdml_med.metrics.paired import compare, estimate, holm
from kdml_med.metrics.paired_scores import Scores
from kdml_med.program import progress_bar

RESAMPLES = {Task.CLASSIFICATION: 2000, Task.DETECTION: 1000}
PERMUTATIONS = {Task.CLASSIFICATION: 10_000, Task.DETECTION: 2000}
"""Fewer for detectors, of which one figure takes a hundred times as long; p values then end at 0.0005."""
COMPARED_ROLES: tuple[Role, ...] = ("ensemble", "students")

_SUMMARY = {
    "version": "str",
    "evaluation": "str",
    "arm": "str",
    "role": "str",
    "metric": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "unit": "str",
    "units": "Int64",
    "seeds": "Int64",
    "folds": "Int64",
}
_COMPARISON = {
    "version": "str",
    "evaluation": "str",
    "role": "str",
    "metric": "str",
    "reference": "str",
    "arm": "str",
    "value_reference": "float64",
    "value_arm": "float64",
    "difference": "float64",
    "low": "float64",
    "high": "float64",
    "p_value": "float64",
    "p_holm": "float64",
    "unit": "str",
    "units": "Int64",
    "seeds": "Int64",
    "permutations": "Int64",
    "exact": "bool",
}

_Seeds = Mapping[int, Sequence[Mapping[str, Scores]]]  # repetitions of each seed, scores by network


def metrics_of(results: Results) -> list[str]:
    """What arms are compared by: the plan's metric, then the others of its task."""
    known = METRICS[results.plan.task]
    primary = results.plan.metric or known[0]
    return [primary, *(name for name in known if name != primary)]


def summary_table(results: Results) -> pd.DataFrame:
    """Figures of every arm over its seeds and folds, with 95 % intervals over units and seeds.

    Where folds test samples of their own, a figure is about pairs (or boxes) within folds, see
    ``kdml_med.metrics.paired_scores``. On a test set that is the same for all folds, the trainings of all seeds and
    folds are averaged and resampled as if each were a seed; as they share data, the interval is somewhat too narrow.

    Returns:
        One row for each version, evaluation, arm, metric and role, in the order of the plan and of ``metrics_of``. Role
        is "teacher", "students" (mean of the single students) or "ensemble". unit is what was resampled, "patient",
        "sequence" or "frame", of which there are ``units``; folds is missing without folds.

    Raises:
        InputError: see ``kdml_med.experiments.scores``.
    """
    task = results.plan.task
    work = [(*place, metric) for place in _places(results) for metric in metrics_of(results)]
    rows = []
    with progress_bar(len(work), what="figures of arms", unit="arm") as bar:
        for version, evaluation, arm, metric in work:
            seeds = results.whole_seeds(version, arm)
            scores = _load(results, version, arm, seeds, evaluation, metric)
            for role in get_args(Role) if seeds else ():
                repetitions = _of_role(results, version, arm, scores, seeds, role)
                if not repetitions:
                    continue
                figure = estimate(repetitions, resamples=RESAMPLES[task])
                rows.append(
                    _place(results, version, evaluation, arm, seeds)
                    | {"role": role, "metric": metric, "value": figure.value, "low": figure.low, "high": figure.high}
                    | {"units": figure.units, "folds": len(results.folds) if results.plan.folds else None}
                )
            bar.update()
    table = pd.DataFrame(rows, columns=list(_SUMMARY)).astype(_SUMMARY)
    return table


def comparison_table(results: Results) -> pd.DataFrame:
    """The reference arm minus each other arm, by the primary metric.

    An arm that trains the teacher alone takes part through its teacher, in both roles.

    Returns:
        One row for each version, evaluation, role of ``COMPARED_ROLES`` and arm; see
        ``kdml_med.metrics.paired.Comparison`` for difference, low, high, p_value, permutations and exact. p_holm
        adjusts the p values of one version, evaluation and role for each other. An arm without a whole seed that the
        reference has too has no row.

    Raises:
        InputError: see ``kdml_med.experiments.scores``.
    """
    others = [place for place in _places(results) if place[2] != results.plan.reference]
    rows: list[dict[str, Any]] = []
    reference: dict[tuple[str, str], _Seeds] = {}
    with progress_bar(len(others), what="comparisons", unit="arm") as bar:
        for version, evaluation, arm in others:
            if (version, evaluation) not in reference:
                seeds = results.whole_seeds(version, results.plan.reference)
                # Only one is kept: matched boxes take much memory.
                reference = {
                    (version, evaluation): _load(
                        results, version, results.plan.reference, seeds, evaluation, metrics_of(results)[0]
                    )
                }
            rows += _comparisons(results, version, evaluation, arm, reference[version, evaluation])
            bar.update()
    table = pd.DataFrame(rows, columns=list(_COMPARISON)).astype(_COMPARISON)
    table["role"] = pd.Categorical(table["role"], COMPARED_ROLES, ordered=True)
    family = ["version", "evaluation", "role"]
    table = _sorted(table, results).astype({"role": "str"})
    if len(table):
        table["p_holm"] = table.groupby(family, sort=False)["p_value"].transform(holm)
    return table


def _comparisons(
    results: Results, version: str, evaluation: str, arm: str, reference: _Seeds
) -> Iterator[dict[str, Any]]:
    task, metric, name = results.plan.task, metrics_of(results)[0], results.plan.reference
    seeds = [seed for seed in results.whole_seeds(version, arm) if seed in reference]
    scores = _load(results, version, arm, seeds, evaluation, metric)
    for role in COMPARED_ROLES if seeds else ():
        own = _of_role(results, version, name, reference, seeds, role, compared=True)
        other = _of_role(results, version, arm, scores, seeds, role, compared=True)
        found = compare(own, other, resamples=RESAMPLES[task], permutations=PERMUTATIONS[task])
        yield (
            _place(results, version, evaluation, arm, seeds)
            | {"role": role, "metric": metric, "reference": name}
            | {"value_reference": found.value_a, "value_arm": found.value_b, "difference": found.difference}
            | {"low": found.low, "high": found.high, "p_value": found.p_value, "p_holm": math.nan}
            | {"units": found.units, "permutations": found.permutations, "exact": found.exact}
        )


def _places(results: Results) -> list[tuple[str, str, str]]:
    """Version, evaluation and arm of everything there could be."""
    return [
        (version, evaluation, arm)
        for version in results.plan.versions
        for evaluation in results.evaluations
        for arm in results.arms
    ]


def _place(results: Results, version: str, evaluation: str, arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    cell = results.find(version, arm, seeds[0], results.folds[0])
    assert cell is not None  # its seed is whole
    unit = resampling_unit(results, cell, evaluation)
    return {"version": version, "evaluation": evaluation, "arm": arm, "unit": unit, "seeds": len(seeds)}


def _load(
    results: Results, version: str, arm: str, seeds: Sequence[int], evaluation: str, metric: str
) -> dict[int, list[dict[str, Scores]]]:
    cells = results.whole_cells(version, arm)
    return {
        seed: load_scores(results, [cell for cell in cells if cell.seed == seed], evaluation, metric) for seed in seeds
    }


def _of_role(
    results: Results,
    version: str,
    arm: str,
    scores: _Seeds,
    seeds: Sequence[int],
    role: Role,
    *,
    compared: bool = False,
) -> list[list[Scores]]:
    """For each repetition the networks of a role; none where the arm has no such network."""
    cell = next(cell for cell in results.whole_cells(version, arm))
    if compared and results.trains_teacher_alone(arm):
        role = "teacher"
    names = role_networks(results, cell, role)
    return [[repetition[name] for name in names] for seed in seeds for repetition in scores[seed]] if names else []


def _sorted(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Rows by version, evaluation, role and arm, in the order of the plan."""
    orders = {"version": list(results.plan.versions), "arm": list(results.arms)}

    def key(column: pd.Series[Any]) -> pd.Series[Any]:
        order = orders.get(str(column.name))
        return column if order is None else column.map(order.index)

    return table.sort_values(["version", "evaluation", "role", "arm"], key=key, ignore_index=True)
