"""Jobs done by the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdml_med.errors import InputError
from kdml_med.workers.jobs import Count, End, Work, attempt, unexpected

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = "10s"
_LOOK_AGAIN_S = 5.0


class ClusterWorkers:
    """Workers of a Dask cluster, which see the folders of this machine under the same names.

    Each has one job at a time, and none in stock: Dask suspects everything that a lost worker had. Jobs do not tell
    their progress.

    Args:
        address: of the scheduler.
        folders: that the work needs, besides the one this process is in; a worker without them says so.
        crashed: the reason given for a job that took several workers down.

    Raises:
        InputError: Dask is not installed, no scheduler answers, or a worker has several threads.
    """

    def __init__(
        self,
        address: str,
        *,
        folders: Sequence[Path] = (),
        crashed: str = "its worker ended at once several times, probably for want of memory",
    ) -> None:
        self._folders, self._crashed = [Path.cwd(), *folders], crashed
        self._client = _connect(address)
        self._running: dict[Future[str | None], int] = {}
        try:
            _check_threads(self._client.nthreads())
        except InputError:
            self._client.close()
            raise
        if not self._client.nthreads():
            logger.info("no worker is there yet; start some: dask worker %s --nthreads 1 --memory-limit 0", address)
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

    def has_room(self) -> bool:
        """Whether fewer jobs are in work than there are workers; the first one may wait for a worker to come."""
        try:
            return len(self._running) < max(1, len(self._client.nthreads()))
        except OSError:  # the scheduler is lost; those who wait for jobs are told so
            return not self._running

    def begin(self, number: int, work: Work, job: Any) -> None:
        """Hand a job to the scheduler."""
        self._running[self._executor.submit(_do_on_worker, self._folders, work, job)] = number

    def wait(self, on_progress: Count) -> list[End]:
        """Wait for a job to end, or until workers may have joined.

        Raises:
            InputError: from the work, or the scheduler is lost.
        """
        ended, _ = wait(self._running, timeout=_LOOK_AGAIN_S, return_when=FIRST_COMPLETED)
        return [self._end(self._running.pop(future), future) for future in ended]

    def _end(self, number: int, future: Future[str | None]) -> End:
        try:
            return End(number, future.result())
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


def _do_on_worker(folders: Sequence[Path], work: Work, job: Any) -> str | None:
    """Do a job on a worker of a cluster, as if it had been started in the first of the folders."""
    from distributed import get_worker

    worker = get_worker()
    for needed in folders:
        if not needed.is_dir():
            return (
                f"worker {worker.address} has no folder {needed}: it has to see the same folders under the same names"
            )
    try:
        _check_threads({worker.address: worker.state.nthreads})  # it may have joined after the others were looked at
    except InputError as error:
        return str(error)
    with contextlib.chdir(folders[0]):
        return attempt(work, job, _ignore)


def _ignore(_: int) -> None:
    """Nobody counts along."""
