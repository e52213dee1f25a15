"""Arms of a plan side by side, the reference arm minus each other one, and ensembles minus their students.

Only whole repetitions count: a seed enters an arm when all its folds are done, and a comparison uses the seeds that
both arms have.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast, get_args

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.experiments.endpoints import COMPARED_ROLES, METRICS, Endpoint
from kdml_med.experiments.results import Results
from kdml_med.experiments.scores import Role, load_scores, resampling_unit, role_networks
from kdml_med.keys import Task
from kdml_med.metrics.box_matching import Floats
from kdml_med.metrics.paired import Comparison, compare, estimate, holm, resampled
from kdml_med.metrics.paired_scores import Scores
from kdml_med.metrics.power import ALPHA, detectable_difference
from kdml_med.program import progress_bar

RESAMPLES = {Task.CLASSIFICATION: 2000, Task.DETECTION: 1000}
PERMUTATIONS = {Task.CLASSIFICATION: 10_000, Task.DETECTION: 2000}
"""Fewer for detectors, of which one figure takes a hundred times as long; p values then end at 0.0005."""

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
    "pairs": "Int64",
    "seed_sd": "float64",
    "detectable": "float64",
}

_GAIN = {
    "version": "str",
    "evaluation": "str",
    "metric": "str",
    "arm": "str",
    "value_ensemble": "float64",
    "value_students": "float64",
    "difference": "float64",
    "low": "float64",
    "high": "float64",
    "unit": "str",
    "units": "Int64",
    "seeds": "Int64",
    "seed_sd": "float64",
}
_FAMILY = ["version", "evaluation", "role", "metric"]

_Seeds = Mapping[int, Sequence[Mapping[str, Scores]]]  # repetitions of each seed, scores by network


def metrics_of(results: Results) -> list[str]:
    """What arms are compared by: the plan's metric, the others of its task, and those of its endpoints."""
    plan = results.plan
    named = [endpoint.metric for endpoint in plan.compared]
    return list(dict.fromkeys([plan.primary_metric, *METRICS[plan.task], *named]))


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
        InputError: see ``kdml_med.experiments.scores``; or trainings were evaluated on different samples.
    """
    work = [(*place, metric) for place in _places(results) for metric in metrics_of(results)]
    rows = []
    with progress_bar(len(work), what="figures of arms", unit="arm") as bar:
        for version, evaluation, arm, metric in work:
            seeds = results.whole_seeds(version, arm)
            scores = _load(results, version, arm, seeds, evaluation, metric)
            for role in get_args(Role) if seeds else ():
                known = _of_role(results, version, arm, scores, seeds, role)
                if not known:
                    continue
                with _same_samples(evaluation, arm):
                    drawn = _drawn(results, (version, evaluation, metric, arm, role, *seeds), known)
                    figure = estimate(known, drawn=drawn)
                rows.append(
                    _place(results, version, evaluation, arm, seeds)
                    | {"role": role, "metric": metric, "value": figure.value, "low": figure.low, "high": figure.high}
                    | {"units": figure.units, "folds": len(results.folds) if results.plan.folds else None}
                )
            bar.update()
    table = pd.DataFrame(rows, columns=list(_SUMMARY)).astype(_SUMMARY)
    return table


def comparison_table(results: Results) -> pd.DataFrame:
    """The reference arm minus each other arm, and the further pairs of the plan, by each of its endpoints.

    An arm that trains the teacher alone takes part through its teacher, in both roles.

    Returns:
        One row for each version, evaluation, endpoint (role and metric) and pair of arms; see
        ``kdml_med.metrics.paired.Comparison`` for difference, low, high, p_value, permutations, exact and seed_sd.
        p_holm adjusts the p values of one version, evaluation and endpoint for each other, those of the reference and
        those of the further pairs apart. pairs are the trainings that were paired, and detectable is the difference
        that so many of that spread find with a chance of four in five, at a level of 0.05 divided by the number of
        p values that p_holm is about. Arms without a whole seed in common have no row.

    Raises:
        InputError: see ``kdml_med.experiments.scores``; or trainings were evaluated on different samples.
    """
    reference = results.plan.reference
    pairs = [(reference, arm) for arm in results.arms if arm != reference]
    pairs += [(first, second) for first, second in results.plan.contrasts]
    by_metric: dict[str, list[Endpoint]] = {}
    for endpoint in results.plan.compared:
        by_metric.setdefault(endpoint.metric, []).append(endpoint)
    places = [
        (version, evaluation, metric)
        for version in results.plan.versions
        for evaluation in results.evaluations
        for metric in by_metric
    ]
    rows: list[dict[str, Any]] = []
    with progress_bar(len(places) * len(pairs), what="comparisons", unit="pair") as bar:
        for version, evaluation, metric in places:
            scores = _Remembered(results, version, evaluation, metric)
            for first, second in pairs:
                rows += _comparisons(scores, first, second, by_metric[metric])
                bar.update()
    table = pd.DataFrame(rows, columns=list(_COMPARISON)).astype(_COMPARISON)
    table = _sorted(table, results)
    if len(table):
        own = table["reference"] == reference
        family = [*_FAMILY, own]
        table["p_holm"] = table.groupby(family, sort=False)["p_value"].transform(holm)
        table["detectable"] = [
            detectable_difference(sd, int(trainings), alpha=ALPHA / tests)
            for sd, trainings, tests in zip(
                table["seed_sd"],
                table["pairs"],
                table.groupby(family, sort=False)["p_value"].transform("count").clip(lower=1),
                strict=True,
            )
        ]
    return table


class _Remembered:
    """Scores of arms in one place; only those that come again are kept, as matched boxes take much memory."""

    def __init__(self, results: Results, version: str, evaluation: str, metric: str) -> None:
        self.results, self.version, self.evaluation, self.metric = results, version, evaluation, metric
        plan = results.plan
        self._often = {plan.reference, *(arm for pair in plan.contrasts for arm in pair)}
        self._kept: dict[str, _Seeds] = {}

    def of(self, arm: str) -> _Seeds:
        if arm not in self._kept:
            seeds = self.results.whole_seeds(self.version, arm)
            found = _load(self.results, self.version, arm, seeds, self.evaluation, self.metric)
            if arm not in self._often:
                return found
            self._kept[arm] = found
        return self._kept[arm]


def _comparisons(
    scores: _Remembered, first: str, second: str, endpoints: Sequence[Endpoint]
) -> Iterator[dict[str, Any]]:
    results, version, evaluation = scores.results, scores.version, scores.evaluation
    own, other = scores.of(first), scores.of(second)
    seeds = [seed for seed in other if seed in own]
    for endpoint in endpoints if seeds else ():
        sides: list[tuple[list[list[Scores]], Floats]] = []
        for arm, known in ((first, own), (second, other)):
            role: Role = "teacher" if results.trains_teacher_alone(arm) else endpoint.role
            networks = _of_role(results, version, arm, known, seeds, role)
            place = (version, evaluation, scores.metric, arm, role, *seeds)
            sides.append((networks, _drawn(results, place, networks)))
        (a, drawn_a), (b, drawn_b) = sides
        with _same_samples(evaluation, f"{first} and {second}"):
            found = compare(a, b, permutations=PERMUTATIONS[results.plan.task], drawn=(drawn_a, drawn_b))
        yield (
            _place(results, version, evaluation, second, seeds)
            | {"role": endpoint.role, "metric": endpoint.metric, "reference": first}
            | _numbers(found, "value_reference", "value_arm")
        )


@contextmanager
def _same_samples(evaluation: str, arms: str) -> Iterator[None]:
    """Say for people that trainings were judged on different samples."""
    try:
        yield
    except ValueError as error:
        raise InputError(
            f"trainings of {arms} were not evaluated on the same samples ({evaluation}): {error} The dataset has "
            "changed in between. Run the plan again with another --out."
        ) from error


def _drawn(results: Results, place: tuple[Hashable, ...], networks: list[list[Scores]]) -> Floats:
    """Figures under resampled units, computed once: every arm stands in several tables, the reference in every pair."""
    if place not in results.drawn:
        results.drawn[place] = resampled(networks, resamples=RESAMPLES[results.plan.task])
    return results.drawn[place]


def _numbers(found: Comparison, first: str, second: str) -> dict[str, Any]:
    return {
        **{first: found.value_a, second: found.value_b, "difference": found.difference},
        **{"low": found.low, "high": found.high, "p_value": found.p_value, "p_holm": math.nan},
        **{"units": found.units, "permutations": found.permutations, "exact": found.exact},
        **{"pairs": found.seeds, "seed_sd": found.seed_sd, "detectable": math.nan},
    }


def gain_table(results: Results) -> pd.DataFrame:
    """The ensemble of each arm minus the mean of its students, by the metrics of the plan's endpoints.

    Returns:
        One row for each version, evaluation, metric and arm with students: value_ensemble, value_students, and as in
        ``comparison_table``; without p values, because an average of several networks is no second way to train.

    Raises:
        InputError: see ``kdml_med.experiments.scores``.
    """
    metrics = list(dict.fromkeys(endpoint.metric for endpoint in results.plan.compared))
    work = [
        (*place, metric)
        for place in _places(results)
        if not results.trains_teacher_alone(place[2])
        for metric in metrics
    ]
    rows: list[dict[str, Any]] = []
    with progress_bar(len(work), what="gains of ensembles", unit="arm") as bar:
        for version, evaluation, arm, metric in work:
            seeds = results.whole_seeds(version, arm)
            if seeds:
                scores = _load(results, version, arm, seeds, evaluation, metric)
                ensemble, students = (_of_role(results, version, arm, scores, seeds, role) for role in COMPARED_ROLES)
                of_ensemble, of_students = (
                    _drawn(results, (version, evaluation, metric, arm, role, *seeds), known)
                    for role, known in zip(COMPARED_ROLES, (ensemble, students), strict=True)
                )
                found = compare(ensemble, students, permutations=0, drawn=(of_ensemble, of_students))
                place = _place(results, version, evaluation, arm, seeds) | {"metric": metric}
                rows.append(place | _numbers(found, "value_ensemble", "value_students"))
            bar.update()
    table = pd.DataFrame(rows, columns=list(_GAIN)).astype(_GAIN)
    return table


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
) -> list[list[Scores]]:
    """For each repetition the networks of a role; none where the arm has no such network."""
    cell = next(cell for cell in results.whole_cells(version, arm))
    names = role_networks(results, cell, role)
    return [[repetition[name] for name in names] for seed in seeds for repetition in scores[seed]] if names else []


def _sorted(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Rows by version, evaluation, endpoint and pair, in the order of the plan."""
    plan = results.plan
    endpoints = [(endpoint.role, endpoint.metric) for endpoint in plan.compared]
    pairs = [(plan.reference, arm) for arm in results.arms] + [(first, second) for first, second in plan.contrasts]

    def place(row: Mapping[str, Any]) -> tuple[int, ...]:
        return (
            list(plan.versions).index(row["version"]),
            results.evaluations.index(row["evaluation"]),
            endpoints.index((row["role"], row["metric"])),
            pairs.index((row["reference"], row["arm"])),
        )

    order = sorted(range(len(table)), key=lambda number: place(cast(Any, table.iloc[number])))
    return table.iloc[order].reset_index(drop=True)
