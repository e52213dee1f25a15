"""Who does the cells of a plan: processes of this machine, or workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

from kdml_med.errors import InputError
from kdml_med.experiments.plan import Cell, Plan

logger = logging.getLogger(__name__)

Train = Callable[[Cell, Plan, Path], str | None]
"""Does one cell and returns None, or why it could not. Has to be picklable: a function at module level."""

# Not fork: torch's threads do not survive it.
_START_METHOD = "spawn"
_CONNECT_TIMEOUT = "10s"
_LOOK_AGAIN_S = 5.0


class Workers(Protocol):
    """What a plan is handed out to.

    Attributes:
        look_again_s: after this many seconds there may be more room though no cell has ended; None for never.
    """

    look_again_s: float | None

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def has_room(self) -> bool:
        """Whether there is somebody to begin another cell at once."""

    def submit(self, train: Train, cell: Cell, plan: Plan, out: Path) -> Future[str | None]:
        """Begin a cell."""

    def release(self, future: Future[str | None]) -> None:
        """Take back whoever did a cell that has ended."""


class LocalWorkers:
    """Processes of this machine, each in a pool of its own: one that is lost takes no other's work with it.

    A process does many cells, so that imports are paid once.

    Args:
        number: cells at a time.
    """

    look_again_s: float | None = None

    def __init__(self, number: int) -> None:
        self._number = number
        self._idle: list[_Process] = []
        self._busy: dict[Future[str | None], _Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all processes; those in work, too, of which there are some after an error or Ctrl-C."""
        for process in self._busy.values():
            process.end()
        for process in self._idle:
            process.dismiss()

    def has_room(self) -> bool:
        """Whether fewer cells are in work than may be."""
        return len(self._busy) < self._number

    def submit(self, train: Train, cell: Cell, plan: Plan, out: Path) -> Future[str | None]:
        """Begin a cell in a process that has nothing to do, or in a new one."""
        process = self._idle.pop() if self._idle else _Process()
        try:
            future = process.submit(train, cell, plan, out)
        except BrokenProcessPool:  # it was lost while it had nothing to do
            process.end()
            process = _Process()
            future = process.submit(train, cell, plan, out)
        self._busy[future] = process
        return future

    def release(self, future: Future[str | None]) -> None:
        """Keep the process of a cell for the next one, unless it was lost."""
        process = self._busy.pop(future)
        if isinstance(future.exception(), BrokenProcessPool):
            process.end()
        else:
            self._idle.append(process)


class _Process:
    """One process on a leash: it ends at once when the other end is let go, by purpose or because this process died.

    A worker that outlived this process would go on writing into a folder that the next run already uses.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context(_START_METHOD)
        self._collar, self._leash = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(1, context, initializer=_put_on_leash, initargs=(self._collar,))

    def submit(self, train: Train, cell: Cell, plan: Plan, out: Path) -> Future[str | None]:
        with _without_interrupts():  # the process is started here
            return self._pool.submit(train, cell, plan, out)

    def dismiss(self) -> None:
        """End it once it has nothing to do, so that it can tidy up."""
        self._pool.shutdown()
        self.end()

    def end(self) -> None:
        """End it at once."""
        self._leash.close()
        self._pool.shutdown(cancel_futures=True)
        self._collar.close()


def _put_on_leash(collar: multiprocessing.connection.Connection) -> None:
    # By default a lock between processes, which would be reported as leaked when this one ends at once.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_when_let_go, args=(collar,), daemon=True).start()


def _end_when_let_go(collar: multiprocessing.connection.Connection) -> None:
    multiprocessing.connection.wait([collar])
    os._exit(1)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started in this block never see Ctrl-C, which a terminal sends to all of them.

    They would print a traceback each; the main process sees it and ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ClusterWorkers:
    """Workers of a Dask cluster, which see the folders of this machine under the same names.

    Each has one cell at a time, and none in stock: Dask suspects everything that a lost worker had.

    Args:
        address: of the scheduler.

    Raises:
        InputError: Dask is not installed, no scheduler answers, or a worker has several threads.
    """

    look_again_s: float | None = _LOOK_AGAIN_S

    def __init__(self, address: str) -> None:
        self._client = _connect(address)
        self._running: set[Future[str | None]] = set()
        try:
            _check_threads(self._client.nthreads())
        except InputError:
            self._client.close()
            raise
        if not self._client.nthreads():
            logger.info("no worker is there yet; start some: dask worker %s --nthreads 1 --memory-limit 0", address)
        # pure: a cell that is tried again must not be answered from memory.
        self._executor = self._client.get_executor(pure=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take back what is not begun."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            logger.info("workers of the cluster end the trainings that they have begun, unless they are ended, too")
        self._client.close()

    def has_room(self) -> bool:
        """Whether fewer cells are in work than there are workers; the first one may wait for a worker to come."""
        try:
            return len(self._running) < max(1, len(self._client.nthreads()))
        except OSError:  # the scheduler is lost; those who wait for cells are told so
            return not self._running

    def submit(self, train: Train, cell: Cell, plan: Plan, out: Path) -> Future[str | None]:
        """Hand a cell to the scheduler."""
        future: Future[str | None] = self._executor.submit(_train_on_worker, Path.cwd(), train, cell, plan, out)
        self._running.add(future)
        return future

    def release(self, future: Future[str | None]) -> None:
        """Make room for the next cell."""
        self._running.remove(future)


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--scheduler needs Dask: pip install 'kdml_med[cluster]'.") from error
    try:
        return Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"no Dask scheduler answers at {address!r} ({reason}). Start one: `dask scheduler` prints its address."
        ) from error


def _check_threads(threads: dict[str, int]) -> None:
    several = [address for address, number in threads.items() if number > 1]
    if several:
        raise InputError(
            f"worker {several[0]} has {threads[several[0]]} threads. Trainings in threads of one process would share "
            "random state and settings: start workers with --nthreads 1, and more of them with --nworkers."
        )


def _train_on_worker(folder: Path, train: Train, cell: Cell, plan: Plan, out: Path) -> str | None:
    """Do a cell on a worker of a cluster, as if it had been started in the folder of the main process."""
    from distributed import get_worker

    worker = get_worker()
    for needed in (folder, out):
        if not needed.is_dir():
            return (
                f"worker {worker.address} has no folder {needed}: it has to see the same folders under the same names"
            )
    try:
        _check_threads({worker.address: worker.state.nthreads})  # it may have joined after the others were looked at
    except InputError as error:
        return str(error)
    with contextlib.chdir(folder):
        return train(cell, plan, out)
