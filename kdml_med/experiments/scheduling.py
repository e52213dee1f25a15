"""The cells of a plan, done side by side on this machine or on a Dask cluster, each after the one it needs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.experiments.costs import cell_cost
from kdml_med.experiments.plan import PLAN_FILE, Cell, Plan, plan_content
from kdml_med.experiments.training import check_data, is_done, train_cell
from kdml_med.experiments.workers import ClusterWorkers, LocalWorkers, Train, Workers
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.manifest import FAILURES_FILE

logger = logging.getLogger(__name__)

_ATTEMPTS = 2


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
        InputError: a dataset is broken, a finished cell has other settings, or the scheduler cannot be reached; nothing
            is written then. Or the scheduler is lost on the way.
    """
    check_data(plan)
    outcome = Outcome()
    left = [cell for cell in cells if not is_done(cell, plan, out)]
    outcome.skipped = len(cells) - len(left)
    progress = _Progress(plan, cells, left)
    with LocalWorkers(jobs) if scheduler is None else ClusterWorkers(scheduler) as workers:
        write_json(out / PLAN_FILE, plan_content(plan))
        _write_failures(out, outcome)
        for cell, failure in _work_through(plan, left, out, workers, train):
            progress.tell(cell, failure)
            if failure is None:
                outcome.done += 1
            else:
                outcome.failures[cell.path] = failure
                _write_failures(out, outcome)
    return outcome


def _write_failures(out: Path, outcome: Outcome) -> None:
    table = pd.DataFrame(sorted(outcome.failures.items()), columns=["cell", "reason"])
    write_table(out / FAILURES_FILE, table)


def _work_through(
    plan: Plan, cells: Sequence[Cell], out: Path, workers: Workers, train: Train
) -> Iterator[tuple[Cell, str | None]]:
    """Each cell as it ends, and why it could not be done."""
    waiting, attempts = list(cells), Counter[str]()
    running: dict[Future[str | None], Cell] = {}
    failed: set[str] = set()
    while waiting or running:
        for cell in [one for one in waiting if one.needs in failed]:
            waiting.remove(cell)
            failed.add(cell.path)
            yield cell, f"its teacher, {cell.needs}, could not be trained"
        unfinished = {cell.path for cell in [*waiting, *running.values()]}
        for cell in [one for one in waiting if one.needs not in unfinished]:
            if not workers.has_room():
                break
            waiting.remove(cell)
            attempts[cell.path] += 1
            running[workers.submit(train, cell, plan, out)] = cell
        ended, _ = wait(running, timeout=workers.look_again_s, return_when=FIRST_COMPLETED)
        for future in ended:
            cell = running.pop(future)
            failure, lost = _result(future)
            workers.release(future)
            if lost and attempts[cell.path] < _ATTEMPTS:
                logger.info("%s: %s; once more", cell.path.partition("/")[2], failure)
                waiting.insert(0, cell)
                continue
            if failure is not None:
                failed.add(cell.path)
            yield cell, failure


def _result(future: Future[str | None]) -> tuple[str | None, bool]:
    """Why a cell failed, and whether its process was lost."""
    try:
        return future.result(), False
    except BrokenProcessPool:
        return "its process ended at once, probably for want of memory", True
    except CancelledError as error:
        raise InputError(
            "the connection to the Dask scheduler was lost. Start it again, and run the same command to go on."
        ) from error
    except InputError as error:
        return str(error), False
    except Exception as error:  # a disk that is full, a result that cannot be sent
        if type(error).__name__ == "KilledWorker":  # of Dask, which need not be installed
            return "its worker ended at once several times, probably for want of memory", True
        return f"unexpected {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", False


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
