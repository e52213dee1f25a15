"""The cells of a plan, done side by side on this machine or on a Dask cluster, each after the one it needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.experiments.costs import cell_cost
from kdml_med.experiments.plan import CELLS_DIR, PLAN_FILE, Cell, Plan, make_plan, plan_content
from kdml_med.experiments.training import check_begun, check_data, is_done, train_cell
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.locks import sole_user
from kdml_med.storage.manifest import FAILURES_FILE
from kdml_med.storage.reading import read_json
from kdml_med.workers import ClusterWorkers, Count, LocalWorkers, Order, Workers, work_through

logger = logging.getLogger(__name__)

# What figures depend on: cells of one plan are compared to the third digit.
_LIBRARIES = ("kdml_med", "torch", "monai", "numpy")

_REPORT = ("report.html", "report.md", "results.parquet", "summary.csv", "comparisons.csv", "figures")
"""What a report writes, among others."""

Train = Callable[[Cell, Plan, Path], str | None]
"""Does one cell and returns None, or why it could not. Has to be picklable: a function at module level."""


@dataclass
class Outcome:
    """How a plan ended.

    Attributes:
        done: cells finished now.
        skipped: cells that were finished before.
        failures: why a cell could not be done, by its path.
    """

    done: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def run_plan(
    plan: Plan,
    cells: Sequence[Cell],
    out: Path,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    train: Train = train_cell,
) -> Outcome:
    """Do every cell that is not done; write plan.json and failures.csv.

    failures.csv is of this run alone: it is emptied first, and a failure is in it as soon as it is known.

    Args:
        plan: the plan of the cells.
        cells: see ``kdml_med.experiments.plan.expand``.
        out: results folder; with a scheduler it has to be the same folder on all machines.
        jobs: cells at a time on this machine.
        scheduler: address of a Dask scheduler whose workers do the cells instead.
        train: does one cell.

    Raises:
        InputError: the folder holds something else, a dataset is broken, a cell that has begun or is finished has
            other settings, another run has the folder, or the scheduler or its workers cannot be used; nothing is
            written then. Or the scheduler is lost on the way.
    """
    _check_folder(plan, out)
    check_data(plan)
    outcome = Outcome()
    left = [cell for cell in cells if not is_done(cell, plan, out)]
    for cell in left:
        check_begun(cell, plan, out)
    outcome.skipped = len(cells) - len(left)
    progress = _Progress(plan, cells, left)
    workers: Workers = (
        LocalWorkers(jobs) if scheduler is None else ClusterWorkers(scheduler, folders=[out], libraries=_LIBRARIES)
    )
    with sole_user(out), workers:
        # First of all, for it makes the folder ours: a plan that is corrected at once may take the place of this one.
        (out / CELLS_DIR).mkdir(exist_ok=True)
        write_json(out / PLAN_FILE, plan_content(plan))
        _write_failures(out, outcome)
        work = partial(_train, train=train, plan=plan, out=out)
        for cell, failure in work_through(left, work, workers, order=_ORDER):
            progress.tell(cell, failure)
            if failure is None:
                outcome.done += 1
            else:
                outcome.failures[cell.path] = failure
                _write_failures(out, outcome)
    return outcome


def _check_folder(plan: Plan, out: Path) -> None:
    """Keep plan.json and the report from going over the files of somebody who names a folder with other things."""
    path = out / PLAN_FILE
    if (out / CELLS_DIR).is_dir() or (path.is_file() and _holds(path, plan)):
        return
    strangers = [name for name in (PLAN_FILE, FAILURES_FILE, *_REPORT) if (out / name).exists()]
    if strangers:
        raise InputError(f"{out} holds a {strangers[0]} that is not of this plan: choose another --out.")


def _holds(path: Path, plan: Plan) -> bool:
    try:
        held = make_plan(read_json(path, remedy=""), stored=True)
    except InputError:
        return False
    # Earlier versions stored the folder of a bundle that the plan names.
    contents = [plan_content(one) | {"bundle": str(one.bundle_folder.resolve())} for one in (held, plan)]
    return contents[0] == contents[1]


def _write_failures(out: Path, outcome: Outcome) -> None:
    table = pd.DataFrame(sorted(outcome.failures.items()), columns=["cell", "reason"])
    write_table(out / FAILURES_FILE, table)


def _train(cell: Cell, _: Count, *, train: Train, plan: Plan, out: Path) -> str | None:
    """Do one cell as a job, whose InputError must not end the others."""
    try:
        return train(cell, plan, out)
    except InputError as error:
        return str(error)


def _needs(cell: Cell) -> list[str]:
    return [] if cell.needs is None else [cell.needs]


_ORDER = Order(attrgetter("path"), _needs, unmet="its teacher, {}, could not be trained")


def _costs(plan: Plan, cells: Sequence[Cell]) -> dict[str, float]:
    try:
        return {cell.path: cell_cost(cell, plan) or 1.0 for cell in cells}
    except InputError:
        raise
    except Exception:  # a network of one's own may not take the image that is counted on; then all cells count alike
        logger.debug("costs are not known", exc_info=True)
        return dict.fromkeys((cell.path for cell in cells), 1.0)


class _Progress:
    """One line for each finished cell, with the time that the rest will take."""

    def __init__(self, plan: Plan, cells: Sequence[Cell], left: Sequence[Cell]) -> None:
        self.costs = _costs(plan, left)
        self.total, self.number = len(cells), len(cells) - len(self.costs)
        self.spent, self.started = 0.0, time.monotonic()
        if self.number:
            logger.info("%d of %d trainings are done already", self.number, self.total)

    def tell(self, cell: Cell, failure: str | None) -> None:
        """Say that a cell has ended."""
        self.number += 1
        self.spent += self.costs[cell.path]
        elapsed = time.monotonic() - self.started
        left = elapsed * (sum(self.costs.values()) / self.spent - 1)
        logger.info(
            "%d of %d  %s  %s  (%s so far, about %s to go)",
            self.number,
            self.total,
            cell.path.partition("/")[2],
            "done" if failure is None else f"FAILED: {failure}",
            _duration(elapsed),
            _duration(left),
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes <= 90 else f"{minutes // 60} h {minutes % 60:02d} min"
