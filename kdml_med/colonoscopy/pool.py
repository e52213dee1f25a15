"""Shards side by side in worker processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from kdml_med.colonoscopy.options import FrameOptions
from kdml_med.colonoscopy.planning import ShardJob
from kdml_med.colonoscopy.storing import store_shard
from kdml_med.errors import InputError

_POLL_S = 0.5
_CRASHED = "the decoder crashed on one of its files"

_frames_done: Any = None  # in a worker process: the counter shared with the parent

Outcome = tuple[ShardJob, str | None]
"""A job, and why it could not be done; None when it is."""


def run_jobs(
    jobs: Sequence[ShardJob], out_dir: Path, options: FrameOptions, workers: int, on_frames: Callable[[int], None]
) -> Iterator[Outcome]:
    """Store shards on some cores.

    Args:
        jobs: shards to store.
        out_dir: dataset folder.
        options: of the run.
        workers: processes.
        on_frames: told from time to time how many more frames were looked at.

    Yields:
        An outcome for each shard, as it ends.

    Raises:
        InputError: the output cannot be written.
    """
    processes = min(workers, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield job, _try(job, out_dir, options, lambda: on_frames(1))
        return
    left = list(jobs)
    while left:
        try:
            for job, failure in _run_pool(left, out_dir, options, processes, on_frames):
                left.remove(job)
                yield job, failure
        except BrokenProcessPool:
            # A decoder took its process down, and with it the pool. One after the other, the first that is left when
            # the process goes down again is the one.
            if processes == 1:
                yield left.pop(0), _CRASHED
            processes = 1


def _run_pool(
    jobs: Sequence[ShardJob], out_dir: Path, options: FrameOptions, processes: int, on_frames: Callable[[int], None]
) -> Iterator[Outcome]:
    # Not fork: the parent may run threads, and a forked child inherits their locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    counted = 0
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(counter,))
    try:
        futures: dict[Future[str | None], ShardJob] = {
            pool.submit(_try_counting, job, out_dir, options): job for job in jobs
        }
        open_futures = set(futures)
        while open_futures:
            ended, open_futures = wait(open_futures, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            on_frames(counter.value - counted)
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
        # On the way out by an error the shards in work end first; those not begun are given up.
        pool.shutdown(cancel_futures=True)


def _start_worker(counter: Any) -> None:
    global _frames_done
    _frames_done = counter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing into a folder that the next run already uses."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _count_frame() -> None:
    with _frames_done.get_lock():
        _frames_done.value += 1


def _try_counting(job: ShardJob, out_dir: Path, options: FrameOptions) -> str | None:
    return _try(job, out_dir, options, _count_frame)


def _try(job: ShardJob, out_dir: Path, options: FrameOptions, on_frame: Callable[[], None]) -> str | None:
    """Store one shard; the reason when that is not possible."""
    try:
        store_shard(job, out_dir, options, on_frame)
    except InputError:
        raise
    except Exception as error:  # a thousand sequences must not stop at one that hits a fault nobody foresaw
        return f"unexpected {type(error).__name__}: {error}"
    return None
