"""What the finished cells of a plan found and cost: one long table.

The only student of a cell that trains the teacher alone is called "teacher" in all tables, and such a cell has no
ensemble.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.data.frames import input_size
from kdml_med.errors import InputError
from kdml_med.experiments.arms import Arm
from kdml_med.experiments.costs import multiply_accumulates
from kdml_med.experiments.plan import Cell, Plan, expand, named_arms
from kdml_med.experiments.training import CELL_FILE, comparable_cell, comparable_evaluations, evaluation_dir
from kdml_med.keys import LossColumn, NetworkName, Task, network_order
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.metrics.box_matching import Floats
from kdml_med.networks.registry import build_network
from kdml_med.runs import (
    METRICS_FILE,
    TRAIN_AGAIN,
    RunDescription,
    checkpoint_path,
    read_losses,
    read_run_json,
)
from kdml_med.storage.files import write_parquet
from kdml_med.storage.manifest import FAILURES_FILE
from kdml_med.storage.reading import damaged, read_table, take

RESULTS_FILE = "results.parquet"
NETWORK_LEVEL = "network"
FRAME_LEVEL = "frame"
NOT_DONE = "not trained yet"

_DTYPES = {
    "version": "str",
    "arm": "str",
    "seed": "Int64",
    "fold": "Int64",
    "evaluation": "str",
    "network": "str",
    "level": "str",
    "metric": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "Int64",
}
_INTERVAL = "_ci95"
_COMMON: dict[str, Any] = {"networks": dict[str, dict[str, Any]], "bootstrap": dict[str, Any]}
_JUDGED = {
    Task.CLASSIFICATION: {**_COMMON, "level": Level, "aggregation": AggregationMethod},
    Task.DETECTION: {**_COMMON, "thresholds": dict[str, float]},
}
"""What reports need of metrics.json."""
_COUNTS = {"n", "n_frames", "parameters"}  # have a column, or a row at network level


@dataclass(frozen=True, eq=False)
class Results:
    """What is done of a plan.

    Attributes:
        plan: what was to be done.
        out: results folder.
        finished: cells that are done, in the order of versions, arms, seeds and folds in the plan.
        missing: all others, and why.
        arms: of the plan by name, sweeps included, in its order.
        drawn: figures under resampled units, which several tables need, see ``kdml_med.experiments.comparison``.
    """

    plan: Plan
    out: Path
    finished: tuple[Cell, ...]
    missing: tuple[tuple[Cell, str], ...]
    arms: Mapping[str, Arm]
    drawn: dict[tuple[Hashable, ...], Floats] = field(default_factory=dict, repr=False)

    @property
    def folds(self) -> Sequence[int | None]:
        """Test folds of every seed; one None without folds."""
        return self.plan.folds or [None]

    @property
    def evaluations(self) -> list[str]:
        """Names, sorted: a plan that was stored and read again has lost their order."""
        return sorted(self.plan.evaluations)

    def folder(self, cell: Cell) -> Path:
        """Run folder of a cell."""
        return self.out / cell.path

    def trains_teacher_alone(self, arm: str) -> bool:
        """Whether the only student of this arm is the teacher."""
        return self.arms[arm].teacher_alone

    def find(self, version: str, arm: str, seed: int, fold: int | None) -> Cell | None:
        """A finished cell."""
        return self._by_key.get((version, arm, seed, fold))

    @functools.cached_property
    def _by_key(self) -> dict[tuple[str, str, int, int | None], Cell]:
        return {(cell.version, cell.arm, cell.seed, cell.fold): cell for cell in self.finished}

    def whole_seeds(self, version: str, arm: str) -> list[int]:
        """Seeds of which every fold is done: a seed with some folds speaks about other samples than the others."""
        return [seed for seed in self.plan.seeds if all(self.find(version, arm, seed, fold) for fold in self.folds)]

    def whole_cells(self, version: str, arm: str) -> list[Cell]:
        """Finished cells of ``whole_seeds``."""
        seeds = self.whole_seeds(version, arm)
        return [cell for cell in self.finished if (cell.version, cell.arm) == (version, arm) and cell.seed in seeds]

    def cohort(self, cell: Cell) -> RunDescription:
        """What the networks of a cell are."""
        return RunDescription.read(self.folder(cell))

    def metrics(self, cell: Cell, evaluation: str) -> dict[str, Any]:
        """Content of an evaluation's metrics.json, networks as stored.

        Raises:
            InputError: it is missing or damaged.
        """
        folder = self.folder(cell) / evaluation_dir(evaluation)
        found = read_run_json(folder, METRICS_FILE)
        for name, hint in _JUDGED[self.plan.task].items():
            take(found, name, hint, folder / METRICS_FILE, remedy=TRAIN_AGAIN)
        take(found["bootstrap"], "unit", str, f"{folder / METRICS_FILE}: bootstrap", remedy=TRAIN_AGAIN)
        return found

    def networks(self, cell: Cell) -> dict[str, str]:
        """Stored names of a cell's networks by their names in tables: teacher, students, ensemble."""
        if self.trains_teacher_alone(cell.arm):
            return {NetworkName.TEACHER.value: NetworkName.student(0)}
        names = sorted([*self.cohort(cell).networks, NetworkName.ENSEMBLE.value], key=network_order)
        return {name: name for name in names}


def collect(plan: Plan, out: Path) -> Results:
    """Find what is done of a plan.

    Args:
        plan: see ``kdml_med.experiments.plan.read_plan``.
        out: results folder.

    Raises:
        InputError: a finished cell was trained or evaluated with other settings than the plan's.
    """
    out = Path(out)
    arms = {name: arm for name, (arm, _) in named_arms(plan).items()}
    reasons = _failures(out / FAILURES_FILE)
    finished, missing = [], []
    for cell in sorted(expand(plan), key=functools.partial(_place, plan, list(arms))):
        if (out / cell.path / CELL_FILE).is_file():
            _check_record(cell, plan, out)
            finished.append(cell)
        else:
            missing.append((cell, reasons.get(cell.path, NOT_DONE)))
    return Results(plan, out, tuple(finished), tuple(missing), arms)


def _place(plan: Plan, arms: Sequence[str], cell: Cell) -> tuple[int, ...]:
    folds: Sequence[int | None] = plan.folds or [None]
    versions, seeds = list(plan.versions), list(plan.seeds)
    return versions.index(cell.version), arms.index(cell.arm), seeds.index(cell.seed), list(folds).index(cell.fold)


def _failures(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    table = read_table(path, ["cell", "reason"], remedy="Delete it.")
    return dict(zip(table["cell"], table["reason"], strict=True))


def _check_record(cell: Cell, plan: Plan, out: Path) -> None:
    """Compare what a cell was done with, as far as the plan tells; datasets are not needed to read results."""
    record = read_run_json(out / cell.path, CELL_FILE)
    expected = json.loads(json.dumps({"cell": asdict(cell), "evaluations": plan.evaluations}, default=str))
    for known in (record, expected):
        known["cell"] = comparable_cell(known.get("cell"))
        known["evaluations"] = comparable_evaluations(known.get("evaluations"), cell)
    for part, value in expected.items():
        if record.get(part) != value:
            raise InputError(
                f"{out / cell.path} was done with another {part} than the plan's: {record.get(part)!r}, expected "
                f"{value!r}. Take the plan as it was, or another results folder."
            )


def results_table(results: Results) -> pd.DataFrame:
    """Every figure of every finished cell.

    Returns:
        One row for each version, arm, seed, fold (missing without folds), evaluation, network, level and metric, in the
        order of the plan: value, low and high (95 % interval; NaN where there is none) and n. Level is "tile" and
        "slide" or "patient", of which there are n, or "frame" with n frames. At level "network" the evaluation is "":
        parameters, multiply_accumulates of one image in the run's size, bytes_on_disk of the weights, and, of networks
        that were trained, steps of the optimiser and best_epoch. The ensemble costs what its students cost together.
    """
    rows: list[dict[str, Any]] = []
    for cell in results.finished:
        with damaged(results.folder(cell), remedy=TRAIN_AGAIN):
            rows += _cell_rows(results, cell)
    return pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)


def write_results(path: Path, table: pd.DataFrame) -> None:
    """Write the table of ``results_table``; the same cells give the same bytes."""
    write_parquet(path, table)


def _cell_rows(results: Results, cell: Cell) -> Iterator[dict[str, Any]]:
    place = {"version": cell.version, "arm": cell.arm, "seed": cell.seed, "fold": cell.fold}
    for network, costs in _costs(results, cell).items():
        for metric, value in costs.items():
            yield place | {"evaluation": "", "network": network, "level": NETWORK_LEVEL} | _figure(metric, value)
    for evaluation in results.evaluations:
        metrics = results.metrics(cell, evaluation)
        for network, stored in results.networks(cell).items():
            for level, figures in _levels(metrics, stored).items():
                own = place | {"evaluation": evaluation, "network": network, "level": level}
                yield from (own | figure for figure in _level_figures(figures))


def _levels(metrics: Mapping[str, Any], network: str) -> dict[str, Mapping[str, Any]]:
    """Figures by level; those of a detector have one level and are not nested."""
    figures = metrics["networks"][network]
    if "level" not in metrics:
        return {FRAME_LEVEL: figures}
    return {level: figures[level] for level in ("tile", metrics["level"])}


def _level_figures(figures: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    count = 0 + (figures["n"] if "n" in figures else figures["n_frames"])  # as in _figure
    for metric in sorted(figures):
        if metric not in _COUNTS and not metric.endswith(_INTERVAL):
            low, high = figures.get(f"{metric}{_INTERVAL}", (None, None))
            yield _figure(metric, figures[metric], low, high) | {"n": count}


def _figure(metric: str, value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    numbers = {"value": value, "low": low, "high": high}
    # Added to a number, because a text in its place has to be noticed here, where its file is known.
    return {"metric": metric} | {name: math.nan if number is None else 0.0 + number for name, number in numbers.items()}


def _costs(results: Results, cell: Cell) -> dict[str, dict[str, float]]:
    """Figures at network level, by network."""
    folder, cohort = results.folder(cell), results.cohort(cell)
    metrics = read_run_json(folder, METRICS_FILE)
    losses = read_losses(folder)
    size = input_size(cohort.image_size)
    costs: dict[str, dict[str, float]] = {}
    for name, stored in results.networks(cell).items():
        if name == NetworkName.ENSEMBLE:
            continue
        path = checkpoint_path(folder, stored)
        costs[name] = {
            "parameters": metrics["networks"][stored]["parameters"],
            "multiply_accumulates": _multiply_accumulates(
                json.dumps(cohort.networks[stored]), cohort.num_classes, *size
            ),
            "bytes_on_disk": path.stat().st_size if path.is_file() else math.nan,
        }
        own = losses[losses[LossColumn.NETWORK] == stored]
        if len(own):  # a frozen teacher was not trained here
            epochs = own.drop_duplicates(str(LossColumn.EPOCH))
            batches = cell.settings.get("accumulate", 1)  # of a step; an epoch's last one takes what is left
            costs[name]["steps"] = int(np.ceil(epochs[LossColumn.ITERATIONS] / batches).sum())
            costs[name]["best_epoch"] = metrics.get("best_epoch", math.nan)
    if NetworkName.ENSEMBLE in results.networks(cell):
        costs[NetworkName.ENSEMBLE.value] = _together([costs[name] for name in costs if name != NetworkName.TEACHER])
    return costs


def _together(students: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Costs of an ensemble. Its students are trained in the same steps, and chosen in the same epoch."""
    shared = {"steps", "best_epoch"}
    return {
        metric: value if metric in shared else math.fsum(student[metric] for student in students)
        for metric, value in students[0].items()
    }


@functools.cache
def _multiply_accumulates(network: str, classes: int, height: int, width: int) -> int:
    return multiply_accumulates(build_network(json.loads(network), num_classes=classes), height, width)
