"""Jobs done by the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdml_med.errors import InputError
from kdml_med.workers.jobs import Count, End, Work, Workers, attempt, unexpected

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = "10s"
_LOOK_AGAIN_S = 1.0
_TELL_EVERY_S = 1.0
# One for all runs: the scheduler keeps what was last told under each for good.
_TOPIC = "kdml_med.progress"
_CRASHED = "its worker ended at once several times, probably for want of memory"


@contextlib.contextmanager
def reach_cluster(
    scheduler: str | None, *, folders: Sequence[Path] = (), libraries: Sequence[str] = (), crashed: str = _CRASHED
) -> Iterator[Workers | None]:
    """Workers of a cluster where an address of one is given; see ``ClusterWorkers``.

    Yields:
        The workers; None without an address.
    """
    if scheduler is None:
        yield None
        return
    with ClusterWorkers(scheduler, folders=folders, libraries=libraries, crashed=crashed) as workers:
        yield workers


class ClusterWorkers:
    """Workers of a Dask cluster, which see the folders of this machine under the same names.

    Each has one job at a time, and none in stock: Dask suspects everything that a lost worker had.

    Args:
        address: of the scheduler.
        folders: that the work needs, besides the one this process is in. Workers that are there and lack one that is
            here are refused; one that joins later says so for each of its jobs.
        libraries: names of packages that decide results; likewise for other versions than here.
        crashed: the reason given for a job that took several workers down.

    Raises:
        InputError: Dask is not installed, no scheduler answers, or a worker cannot be used. ``begin`` raises it, too,
            where a folder was made meanwhile that a worker does not see.
    """

    def __init__(
        self, address: str, *, folders: Sequence[Path] = (), libraries: Sequence[str] = (), crashed: str = _CRASHED
    ) -> None:
        here = Path.cwd()
        self._needs = _Needs((here, *(here / folder for folder in folders)), _versions(tuple(libraries)))
        self._crashed = crashed
        self._client = _connect(address)
        self._running: dict[Future[tuple[str | None, int]], int] = {}
        self._checked = False
        self._progress = _Progress()
        try:
            self._check_workers()
        except InputError:
            self._client.close()
            raise
        if not self._client.nthreads():
            logger.info("no worker is there yet; start some: dask worker %s --nthreads 1 --memory-limit 0", address)
        self._client.subscribe_topic(_TOPIC, self._progress.hear)
        # pure: a job that is tried again must not be answered from memory.
        self._executor = self._client.get_executor(pure=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take back what is not begun."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            logger.info("workers of the cluster finish what they have begun, unless they are ended, too")
        self._client.close()

    def _check_workers(self) -> None:
        """Refuse workers that would do no job well; those that are lost meanwhile do not count."""
        try:
            _check_threads(self._client.nthreads())
            found = self._client.run(_look_around, self._needs.here(), on_error="return")
        except OSError:  # the scheduler is lost; those who wait for jobs are told so
            return
        for address, problem in sorted(found.items()):
            if problem is not None and not isinstance(problem, OSError):
                reason = problem if isinstance(problem, str) else f"cannot be used: {unexpected(problem)}"
                raise InputError(f"worker {address} {reason}.")

    def has_room(self) -> bool:
        """Whether fewer jobs are in work than there are workers; the first one may wait for a worker to come."""
        try:
            return len(self._running) < max(1, len(self._client.nthreads()))
        except OSError:  # the scheduler is lost; those who wait for jobs are told so
            return not self._running

    def begin(self, number: int, work: Work, job: Any) -> None:
        """Hand a job to the scheduler."""
        if not self._checked:
            self._check_workers()
            self._checked = True
        told = (self._progress.name, number)
        self._running[self._executor.submit(_do_on_worker, self._needs, told, work, job)] = number

    def wait(self, on_progress: Count) -> list[End]:
        """Wait for a job to end, or until workers may have joined or told their progress.

        Raises:
            InputError: from the work, or the scheduler is lost.
        """
        ended, _ = wait(self._running, timeout=_LOOK_AGAIN_S, return_when=FIRST_COMPLETED)
        ends = [self._end(self._running.pop(future), future) for future in ended]
        on_progress(self._progress.take())
        return ends

    def _end(self, number: int, future: Future[tuple[str | None, int]]) -> End:
        try:
            failure, looked_at = future.result()
        except InputError:
            raise
        except CancelledError as error:
            raise InputError(
                "the connection to the Dask scheduler was lost. Start it again, and run the same command to go on."
            ) from error
        except Exception as error:  # a result that cannot be sent
            if type(error).__name__ == "KilledWorker":  # of Dask, which need not be installed
                return End(number, self._crashed, lost=True)
            return End(number, unexpected(error))
        self._progress.note(number, looked_at)
        return End(number, failure)


class _Progress:
    """How much was looked at, as workers tell it: for each job the most that anybody who did it has come to.

    What a lost worker had looked at thus counts once, though another begins from the start. A message that gets lost
    does no harm, since each tells the whole, and so does the end of the job.

    Attributes:
        name: by which messages for this run are told from those of others.
    """

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self._lock = threading.Lock()  # messages come in a thread of Dask
        self._totals: dict[int, int] = {}
        self._more = 0

    def hear(self, event: tuple[float, Sequence[Any]]) -> None:
        """Take a message from a worker."""
        _, (name, number, total) = event
        if name == self.name:
            self.note(number, total)

    def note(self, number: int, total: int) -> None:
        """So much of a job was looked at."""
        with self._lock:
            before = self._totals.get(number, 0)
            self._totals[number] = max(before, total)
            self._more += self._totals[number] - before

    def take(self) -> int:
        """How much more was looked at since this was asked."""
        with self._lock:
            more, self._more = self._more, 0
        return more


class _Teller:
    """On a worker: counts what a job looks at, and tells it now and then."""

    def __init__(self, worker: Any, told: tuple[str, int]) -> None:
        self._worker, self._told = worker, told
        self._lock = threading.Lock()  # a job may run threads
        self._next = time.monotonic() + _TELL_EVERY_S
        self.total = 0

    def count(self, more: int) -> None:
        """So much more was looked at."""
        with self._lock:
            self.total += more
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _TELL_EVERY_S
            message = [*self._told, self.total]
        self._worker.log_event(_TOPIC, message)


@dataclass(frozen=True)
class _Needs:
    """What a worker has to have: folders, the first of which is that of the command, and versions of packages."""

    folders: tuple[Path, ...]
    versions: Mapping[str, str]

    def here(self) -> _Needs:
        """Without folders that are not there on this machine, or not yet."""
        return _Needs(tuple(folder for folder in self.folders if folder.is_dir()), self.versions)


@functools.cache
def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in libraries}


def _look_around(needs: _Needs) -> str | None:
    """What a worker lacks; None when it lacks nothing."""
    for folder in needs.folders:
        if not folder.is_dir():
            return f"has no folder {folder}: it has to see the same folders under the same names"
    for name, version in needs.versions.items():
        try:
            own = _versions((name,))[name]
        except importlib.metadata.PackageNotFoundError:
            return f"has no {name}: give all machines the same environment"
        if own != version:
            return f"has {name} {own}, and {version} is here: give all machines the same environment"
    return None


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
            f"worker {several[0]} has {threads[several[0]]} threads. Jobs in threads of one process would share "
            "random state and settings: start workers with --nthreads 1, and more of them with --nworkers."
        )


def _do_on_worker(needs: _Needs, told: tuple[str, int], work: Work, job: Any) -> tuple[str | None, int]:
    """Do a job on a worker of a cluster, as if it had been started in the first of the folders.

    Returns:
        Why it failed, or None, and how much was looked at.
    """
    from distributed import get_worker

    worker = get_worker()
    lack = _look_around(needs)  # it may have joined after the others were looked at
    if lack is not None:
        return f"worker {worker.address} {lack}", 0
    try:
        _check_threads({worker.address: worker.state.nthreads})
    except InputError as error:
        return str(error), 0
    teller = _Teller(worker, told)
    with contextlib.chdir(needs.folders[0]):
        failure = attempt(work, job, teller.count)
    return failure, teller.total
