"""Tables for figures: the metric seed by seed, and against swept settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from kdml_med.experiments.arms import KDML
from kdml_med.experiments.content import Findings, of_group
from kdml_med.experiments.plan import named_arms


@dataclass(frozen=True, eq=False)
class Sweep:
    """One swept setting.

    Attributes:
        arm: that was swept.
        setting: the first one of the grid.
        points: see ``kdml_med.experiments.figures.draw_sweep``.
    """

    arm: str
    setting: str
    points: pd.DataFrame


def seed_values(found: Findings, version: str, evaluation: str) -> pd.DataFrame:
    """The metric by arm, role and seed: mean over folds, of the students mean over each alone.

    Seeds with missing folds are left out; they speak about other samples.
    """
    own = of_group(found.primary, version, evaluation)
    role = own["network"].where(~own["network"].str.startswith("student_"), "students")
    grouped = own.assign(role=role).groupby(["arm", "role", "seed"], as_index=False, sort=False)
    table = grouped.agg(value=("value", "mean"), folds=("fold", "nunique"))
    whole = table["folds"] >= len(found.plan.folds or [])
    return table[whole].drop(columns="folds").reset_index(drop=True)


def sweep_points(found: Findings, version: str, evaluation: str) -> Iterator[Sweep]:
    """Figures of every sweep of the plan."""
    own = of_group(found.summary, version, evaluation)
    own = own[own["metric"] == found.metric]
    arms = {name: settings for name, (_, settings) in named_arms(found.plan).items()}
    for sweep in found.plan.sweeps:
        like = str(sweep.get("arm", KDML))
        axes = [key for key in sweep if key != "arm"]
        rows = []
        for row in own.to_dict("records"):
            settings = arms[row["arm"]]
            if list(settings) == axes and all(settings[key] in sweep[key] for key in axes):
                others = ", ".join(f"{key} {settings[key]}" for key in axes[1:])
                figures = {key: row[key] for key in ("role", "value", "low", "high")}
                rows.append({"setting": settings[axes[0]], "others": others, **figures})
        columns = ["setting", "others", "role", "value", "low", "high"]
        yield Sweep(like, axes[0], pd.DataFrame(rows, columns=columns))
