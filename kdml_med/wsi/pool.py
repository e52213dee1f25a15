"""Slides side by side in worker processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.wsi.cutter import SlideJob, cut_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.slide import SlideError

_POLL_S = 0.5
_CRASHED = "the reader crashed on this file"

_tiles_done: Any = None  # in a worker process: the counter shared with the parent


@dataclass(frozen=True)
class Outcome:
    """End of the work on one slide; ``failure`` is None when it is stored."""

    job: SlideJob
    failure: str | None


def run_jobs(
    jobs: Sequence[SlideJob], out_dir: Path, options: TilingOptions, workers: int, on_tiles: Callable[[int], None]
) -> Iterator[Outcome]:
    """Tile slides on some cores.

    As many slides as there are workers are tiled side by side; when there are fewer slides, each gets several threads.

    Args:
        jobs: slides to tile.
        out_dir: dataset folder.
        options: of the run.
        workers: cores to use.
        on_tiles: told from time to time how many more tiles were looked at.

    Yields:
        An outcome for each slide, as it ends.

    Raises:
        InputError: the output cannot be written.
    """
    processes = min(workers, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield Outcome(job, _try(job, out_dir, options, workers, on_tiles))
        return
    left = list(jobs)
    while left:
        try:
            for outcome in _run_pool(left, out_dir, options, processes, workers // processes, on_tiles):
                left.remove(outcome.job)
                yield outcome
        except BrokenProcessPool:
            # A decoder took its process down, and with it the pool. One after the other, the first that is left when
            # the process goes down again is the one.
            if processes == 1:
                yield Outcome(left.pop(0), _CRASHED)
            processes = 1


def _run_pool(
    jobs: Sequence[SlideJob],
    out_dir: Path,
    options: TilingOptions,
    processes: int,
    threads: int,
    on_tiles: Callable[[int], None],
) -> Iterator[Outcome]:
    # Not fork: the parent may run threads, and a forked child inherits their locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    counted = 0
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(counter,))
    try:
        futures: dict[Future[str | None], SlideJob] = {
            pool.submit(_try_counting, job, out_dir, options, threads): job for job in jobs
        }
        open_futures = set(futures)
        while open_futures:
            ended, open_futures = wait(open_futures, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            on_tiles(counter.value - counted)
            counted = counter.value
            broken = None
            for future in ended:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken = error  # after those that did end
                    continue
                yield Outcome(futures[future], future.result())
            if broken is not None:
                raise broken
    finally:
        # On the way out by an error the slides in work end first; those not begun are given up.
        pool.shutdown(cancel_futures=True)


def _start_worker(counter: Any) -> None:
    global _tiles_done
    _tiles_done = counter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing into a folder that the next run already uses."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _count_tiles(count: int) -> None:
    with _tiles_done.get_lock():
        _tiles_done.value += count


def _try_counting(job: SlideJob, out_dir: Path, options: TilingOptions, threads: int) -> str | None:
    return _try(job, out_dir, options, threads, _count_tiles)


def _try(
    job: SlideJob, out_dir: Path, options: TilingOptions, threads: int, on_tiles: Callable[[int], None]
) -> str | None:
    """Tile one slide; the reason when that is not possible."""
    try:
        cut_slide(job, out_dir, options, threads=threads, on_tiles=on_tiles)
    except SlideError as error:
        return str(error)
    except InputError:
        raise
    except Exception as error:  # a thousand slides must not stop at one that hits a fault nobody foresaw
        return f"unexpected {type(error).__name__}: {error}"
    return None
