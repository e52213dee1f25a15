"""Tables for figures: the metric seed by seed, and against swept settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pandas as pd

from kdml_med.experiments.arms import KDML
from kdml_med.experiments.comparison import metrics_of
from kdml_med.experiments.report.content import Findings, of_group, rows_of_metric
from kdml_med.experiments.results import Results
from kdml_med.experiments.scores import Role, load_scores, network_roles, role_networks
from kdml_med.experiments.sweeps import sweep_axes, swept_arms, value_words
from kdml_med.metrics.paired import estimate

_KEYS = ["version", "evaluation", "arm", "role", "seed"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """One swept setting.

    Attributes:
        arm: that was swept.
        setting: the first one of the grid.
        points: see ``kdml_med.experiments.report.figures.draw_sweep``.
    """

    arm: str
    setting: str
    points: pd.DataFrame


def seed_table(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The metric that arms are compared by, of each seed; the mean over seeds is what stands in the summary.

    Args:
        results: see ``kdml_med.experiments.results.collect``.
        table: their ``results_table``.

    Returns:
        One row for each version, evaluation, arm, role and seed of which every fold is done, with its "value".
    """
    metric = metrics_of(results)[0]
    if results.plan.folds is None:
        own = rows_of_metric(table, metric)
        return (
            own.assign(role=network_roles(own["network"])).groupby(_KEYS, as_index=False, sort=False)[["value"]].mean()
        )
    # What is computed within folds is no mean over folds.
    rows = []
    for version, evaluation, arm in itertools.product(results.plan.versions, results.evaluations, results.arms):
        for seed in results.whole_seeds(version, arm):
            values = _seed_values(results, version, evaluation, arm, seed, metric)
            rows += [(version, evaluation, arm, role, seed, value) for role, value in values.items()]
    return pd.DataFrame(rows, columns=[*_KEYS, "value"])


def _seed_values(results: Results, version: str, evaluation: str, arm: str, seed: int, metric: str) -> dict[str, float]:
    """The metric of one seed by role."""
    cells = [cell for cell in results.whole_cells(version, arm) if cell.seed == seed]
    scores = load_scores(results, cells, evaluation, metric)
    networks = {role: role_networks(results, cells[0], role) for role in get_args(Role)}
    return {
        role: estimate([[one[name] for name in names] for one in scores], resamples=0).value
        for role, names in networks.items()
        if names
    }


def sweep_points(found: Findings, version: str, evaluation: str) -> Iterator[Sweep]:
    """Figures of every sweep of the plan."""
    own = of_group(found.summary, version, evaluation)
    own = own[own["metric"] == found.metric]
    for sweep in found.plan.sweeps:
        like = str(sweep.get("arm", KDML))
        axes = sweep_axes(sweep)
        arms = {name: settings for name, _, settings in swept_arms(sweep, "the plan")}
        rows = []
        for row in own.to_dict("records"):
            settings = arms.get(row["arm"])
            if settings is not None:
                others = ", ".join(f"{key} {value_words(settings[key])}" for key in axes[1:])
                figures = {key: row[key] for key in ("role", "value", "low", "high")}
                rows.append({"setting": _place(settings[axes[0]]), "others": others, **figures})
        columns = ["setting", "others", "role", "value", "low", "high"]
        yield Sweep(like, axes[0], pd.DataFrame(rows, columns=columns))


def _place(value: Any) -> Any:
    """A swept value on an axis: lists and null have no place among numbers, and stand there as text."""
    return value_words(value) if value is None or isinstance(value, list) else value
