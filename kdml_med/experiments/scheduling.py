"""The cells of a plan, done side by side on this machine or on a Dask cluster, each after the one it needs."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.errors import InputError
from kdml_med.experiments.costs import cell_cost
from kdml_med.experiments.plan import Cell, Plan
from kdml_med.experiments.training import is_done, train_cell
from kdml_med.manifest import FAILURES_FILE, write_table
from kdml_med.pool import end_with_parent

logger = logging.getLogger(__name__)

Train = Callable[[Cell, Plan, Path], str | None]
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
    """Do every cell that is not done; write failures.csv.

    Args:
        plan: the plan of the cells.
        cells: see ``kdml_med.experiments.plan.expand``.
        out: results folder; with a scheduler it has to be the same folder on all machines.
        jobs: cells at a time on this machine.
        scheduler: address of a Dask scheduler whose workers do the cells instead.
        train: does one cell; picklable.

    Raises:
        InputError: a finished cell has other settings, or the scheduler cannot be reached.
    """
    outcome = Outcome()
    left = [cell for cell in cells if not is_done(cell, plan, out)]
    outcome.skipped = len(cells) - len(left)
    progress = _Progress(plan, cells, left)
    with _executors(scheduler, jobs) as new_executor:
        for cell, failure in _work_through(
            plan, left, out, new_executor, at_once=None if scheduler else jobs, train=train
        ):
            progress.tell(cell, failure)
            if failure is None:
                outcome.done += 1
            else:
                outcome.failures[cell.path] = failure
    table = pd.DataFrame(sorted(outcome.failures.items()), columns=["cell", "reason"])
    write_table(out / FAILURES_FILE, table)
    return outcome


def _work_through(
    plan: Plan,
    cells: Sequence[Cell],
    out: Path,
    new_executor: Callable[[], Executor],
    *,
    at_once: int | None,
    train: Train,
) -> Iterator[tuple[Cell, str | None]]:
    """Each cell as it ends, and why it could not be done."""
    waiting, attempts = list(cells), dict.fromkeys((cell.path for cell in cells), 0)
    running: dict[Future[str | None], Cell] = {}
    failed: set[str] = set()
    executor = new_executor()
    while waiting or running:
        unfinished = {cell.path for cell in [*waiting, *running.values()]}
        for cell in [one for one in waiting if one.needs in failed]:
            waiting.remove(cell)
            failed.add(cell.path)
            yield cell, f"its teacher, {cell.needs}, could not be trained"
        for cell in [one for one in waiting if one.needs not in unfinished and one.needs not in failed]:
            if at_once is None or len(running) < at_once:
                waiting.remove(cell)
                attempts[cell.path] += 1
                running[executor.submit(train, cell, plan, out)] = cell
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        broken = False
        for future in ended:
            cell = running.pop(future)
            failure, crashed = _result(future)
            if crashed:
                broken = True
                if attempts[cell.path] < _ATTEMPTS:
                    waiting.insert(0, cell)
                    continue
            if failure is not None:
                failed.add(cell.path)
            yield cell, failure
        if broken:
            # A pool of processes is lost with one of them. Whose fault it was is not known: each is tried once more.
            executor = new_executor()


def _result(future: Future[str | None]) -> tuple[str | None, bool]:
    """Why a cell failed, and whether its process was lost."""
    try:
        return future.result(), False
    except (BrokenProcessPool, CancelledError):
        return "its process ended at once, probably for want of memory", True
    except Exception as error:  # of the cluster: a worker lost several times, a result that cannot be sent
        return f"{type(error).__name__}: {error}", type(error).__name__ == "KilledWorker"


@contextlib.contextmanager
def _executors(scheduler: str | None, jobs: int) -> Iterator[Callable[[], Executor]]:
    """A function that starts workers; on the way out they are stopped."""
    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            client = stack.enter_context(_dask_client(scheduler))
            yield lambda: client.get_executor(pure=False)
            return

        def start() -> Executor:
            # Not fork: torch's threads do not survive it. One process does many cells, so that imports are paid once.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(jobs, context, initializer=end_with_parent)
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            return pool

        yield start


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--scheduler needs Dask: pip install 'kdml_med[cluster]'.") from error
    try:
        return Client(address, timeout="30s")
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address!r}: {error}") from error


class _Progress:
    """One line for each finished cell, with the time that the rest will take."""

    def __init__(self, plan: Plan, cells: Sequence[Cell], left: Iterable[Cell]) -> None:
        self.costs = {cell.path: cell_cost(cell, plan) for cell in left}
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
