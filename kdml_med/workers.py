"""Jobs side by side in worker processes, where a crash costs one job and every job ends with a reason or without."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from kdml_med.errors import InputError

Job = TypeVar("Job")
Count = Callable[[int], None]
Work = Callable[[Any, Count], str | None]
"""Called with a job and a function to tell how much more of it was looked at; returns why it failed, or None. Has to be
picklable: a function at module level, or a partial of one."""

_POLL_S = 0.5

_done: Any = None  # in a worker process: the counter shared with the parent


def run_jobs(
    jobs: Sequence[Job], work: Work, *, processes: int, on_progress: Count, crashed: str
) -> Iterator[tuple[Job, str | None]]:
    """Do jobs on some cores.

    Args:
        jobs: what to do.
        work: does one.
        processes: with one, or one job, the work is done in this process.
        on_progress: told from time to time how much more was looked at.
        crashed: the reason given for a job that took its process down.

    Yields:
        Each job as it ends, and why it could not be done; None when it is.

    Raises:
        InputError: from the work; it ends all of it (the output cannot be written, say).
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield job, _try(work, job, on_progress)
        return
    left = list(jobs)
    while left:
        try:
            for job, failure in _run_pool(left, work, processes, on_progress):
                left.remove(job)
                yield job, failure
        except BrokenProcessPool:
            # A decoder took its process down, and with it the pool. One after the other, the first that is left when
            # the process goes down again is the one.
            if processes == 1:
                yield left.pop(0), crashed
            processes = 1


def _run_pool(jobs: Sequence[Job], work: Work, processes: int, on_progress: Count) -> Iterator[tuple[Job, str | None]]:
    # Not fork: the parent may run threads, and a forked child inherits their locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    counted = 0
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(counter,))
    try:
        futures: dict[Future[str | None], Job] = {pool.submit(_try_counting, work, job): job for job in jobs}
        open_futures = set(futures)
        while open_futures:
            ended, open_futures = wait(open_futures, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            on_progress(counter.value - counted)
            counted = counter.value
            broken = None
            for future in ended:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken = error  # after those that did end
                    continue
                yield futures[future], future.result()
            if broken is not None:
                raise broken
    finally:
        # On the way out by an error the jobs in work end first; those not begun are given up.
        pool.shutdown(cancel_futures=True)


def _start_worker(counter: Any) -> None:
    global _done
    _done = counter
    end_with_parent()


def end_with_parent() -> None:
    """Called in a worker process: it ends when its parent does.

    A worker whose parent was killed must not go on writing into a folder that the next run already uses.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _count(more: int) -> None:
    with _done.get_lock():
        _done.value += more


def _try_counting(work: Work, job: Job) -> str | None:
    return _try(work, job, _count)


def _try(work: Work, job: Job, count: Count) -> str | None:
    try:
        return work(job, count)
    except InputError:
        raise
    except Exception as error:  # a thousand jobs must not stop at one that hits a fault nobody foresaw
        return f"unexpected {type(error).__name__}: {error}"
