"""Jobs side by side in processes of this machine, where a crash or a hang costs one job."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Final, Self

from tqdm import tqdm

from kdml_med.errors import InputError
from kdml_med.program import hold_interrupts
from kdml_med.workers.jobs import Count, End, Job, Work, Workers, attempt, unexpected, work_through

# Not fork: the parent may run threads, of torch for one, and a forked child inherits their locks in whatever state they
# are.
_START_METHOD: Final = "spawn"
_POLL_S = 0.5
_STARTING_S = 60.0  # more patience with a process that imports
_TIDYING_S = 10.0

# Places in the numbers that a process shares with the main process.
_LOOKED_AT, _SIGNS = 0, 1


def run_jobs(
    jobs: Sequence[Job],
    work: Work,
    *,
    processes: int,
    on_progress: Count,
    crashed: str,
    patience_s: float | None = None,
    cluster: Workers | None = None,
) -> Iterator[tuple[Job, str | None]]:
    """Do jobs on some cores of this machine, or on a cluster.

    Args:
        jobs: what to do.
        work: does one.
        processes: with one, or one job, and endless patience, the work is done in this process.
        on_progress: told from time to time how much more was looked at.
        crashed: the reason given for a job that took its process down twice.
        patience_s: a job that says nothing for so long, in seconds, is ended and has failed; None for endless patience.
        cluster: workers elsewhere that do the jobs instead; entered by the caller, who told them the last two.

    Yields:
        Each job as it ends, and why it could not be done; None when it is.

    Raises:
        InputError: from the work; it ends all of it (the output cannot be written, say), and the jobs in work at once.
    """
    if cluster is not None:
        yield from work_through(jobs, work, cluster, on_progress=on_progress)
        return
    processes = max(1, min(processes, len(jobs)))
    workers: Workers = ThisProcess()
    if processes > 1 or patience_s is not None:
        workers = LocalWorkers(processes, crashed=crashed, patience_s=patience_s)
    with workers:
        yield from work_through(jobs, work, workers, on_progress=on_progress)


class ThisProcess:
    """The main process as the only worker: no start to wait for, no isolation."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, Work, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def has_room(self) -> bool:
        """Whether no job is begun."""
        return not self._begun

    def begin(self, number: int, work: Work, job: Any) -> None:
        """Remember a job until somebody waits for it."""
        self._begun.append((number, work, job))

    def wait(self, on_progress: Count) -> list[End]:
        """Do the job."""
        number, work, job = self._begun.pop()
        return [End(number, attempt(work, job, on_progress))]


class LocalWorkers:
    """Processes of this machine that do one job each at a time: one that is lost takes no other's work with it.

    A process does many jobs, so that imports are paid once. It never sees Ctrl-C, and ends when this process does.

    Args:
        number: jobs at a time.
        crashed: the reason given for a job that took its process down.
        patience_s: a job that says nothing for so long, in seconds, is ended and has failed; None for endless patience.
            A process that has just been started gets a minute more.
    """

    def __init__(
        self,
        number: int,
        *,
        crashed: str = "its process ended at once, probably for want of memory",
        patience_s: float | None = None,
    ) -> None:
        if number < 1:
            raise ValueError(f"{number} processes do no work, expected at least 1")
        self._number, self._crashed, self._patience_s = number, crashed, patience_s
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []

    def __enter__(self) -> Self:
        # For a walk that is never closed: Python waits at its end for processes, which wait for jobs.
        atexit.register(self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all processes; those in work, too, of which there are some after an error or Ctrl-C."""
        self._end()
        atexit.unregister(self._end)

    def _end(self) -> None:
        for process in self._busy:
            process.kill()
        for process in self._idle:
            process.dismiss()
        for process in [*self._busy, *self._idle]:
            process.join()
        self._busy, self._idle = [], []

    def has_room(self) -> bool:
        """Whether fewer jobs are in work than may be."""
        return len(self._busy) < self._number

    def begin(self, number: int, work: Work, job: Any) -> None:
        """Begin a job in a process that has nothing to do, or in a new one."""
        process = self._take_idle() or _Process()
        self._busy.append(process)
        process.begin(number, work, job)

    def _take_idle(self) -> _Process | None:
        while self._idle:
            process = self._idle.pop()
            if process.lives():
                return process
            process.join()  # it was lost while it had nothing to do
        return None

    def wait(self, on_progress: Count) -> list[End]:
        """Wait for a job to end, but not for long, and look what the others do."""
        multiprocessing.connection.wait([process.connection for process in self._busy], timeout=_POLL_S)
        ends, more = [], 0
        for process in list(self._busy):
            end = process.look(self._crashed, self._patience_s)
            more += process.count()
            if end is not None:
                ends.append(end)
                self._busy.remove(process)
                self._put_away(process)
        on_progress(more)
        return ends

    def _put_away(self, process: _Process) -> None:
        if process.busy:  # crashed or without a sign of life
            process.kill()
            process.join()
        else:
            self._idle.append(process)


class _Process:
    """One process, which does what it is sent until nothing more can come.

    Attributes:
        connection: by which jobs go out and answers come back.
        busy: whether an answer is due.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context(_START_METHOD)
        self._shared = context.RawArray("q", 2)  # no lock, which a process that crashes could keep
        self._counted = self._seen = 0
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._shared))
        resource_tracker.ensure_running()  # otherwise the first process starts it, which lets Ctrl-C through again
        with hold_interrupts():
            self._process.start()
        theirs.close()
        self.busy = False

    def begin(self, number: int, work: Work, job: Any) -> None:
        self._number, self.busy = number, True
        self._silent_s, self._looked = 0.0, time.monotonic()
        with contextlib.suppress(OSError):  # it was lost just now, which the next look shows
            self.connection.send((work, job))

    def lives(self) -> bool:
        return self._process.is_alive()

    def look(self, crashed: str, patience_s: float | None) -> End | None:
        """How the job ended, if it did.

        Raises:
            InputError: from the work.
        """
        # Not left to the connection, which stays open while a process that this one has forked lives on. Asked first,
        # because a process may answer and end.
        lives = self.lives()
        try:
            if self.connection.poll():
                failure, refused = self.connection.recv()
                self.busy = False
                if refused:
                    raise InputError(failure)
                return End(self._number, failure)
        except (EOFError, OSError):
            lives = False
        if not lives:
            return End(self._number, crashed, lost=True)
        if patience_s is not None and self._silence_s() > patience_s:
            return End(self._number, f"no progress for {patience_s:g} s")
        return None

    def _silence_s(self) -> float:
        now, signs = time.monotonic(), self._shared[_SIGNS]
        # In steps of bounded length: while all processes are stopped (Ctrl-Z) time goes on.
        self._silent_s += min(now - self._looked, 2 * _POLL_S)
        self._looked = now
        if signs != self._seen:
            self._seen, self._silent_s = signs, 0.0
        return self._silent_s if signs else self._silent_s - _STARTING_S

    def count(self) -> int:
        """How much more was looked at since this was asked."""
        more = self._shared[_LOOKED_AT] - self._counted
        self._counted += more
        return int(more)

    def kill(self) -> None:
        """End it at once, also when it hangs in C and answers to nobody."""
        self._process.kill()

    def dismiss(self) -> None:
        """Let it tidy up and end."""
        self.connection.close()

    def join(self) -> None:
        """Wait until it has ended, for a while."""
        if not self._ends():
            self.kill()
            self._ends()
        self.connection.close()

    def _ends(self) -> bool:
        # Not Process.join, which with a time limit waits for processes that this one has forked, too.
        deadline = time.monotonic() + _TIDYING_S
        while self.lives() and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.lives()


def _serve(connection: multiprocessing.connection.Connection, shared: Any) -> None:
    """In a worker process: do jobs as they come, and answer each with its failure and whether it is an InputError."""
    # By default a lock between processes, which would be reported as leaked when this one ends at once.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    lock = threading.Lock()

    def count(more: int) -> None:
        with lock:  # a job may run threads
            shared[_LOOKED_AT] += more
            shared[_SIGNS] += 1

    with contextlib.suppress(EOFError, OSError):  # nothing more can come
        while True:
            connection.send(_answer(connection.recv_bytes(), count))


def _end_with_parent() -> None:
    # A worker that outlived the main process would go on writing into a folder that the next run already uses.
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _answer(data: bytes, count: Count) -> tuple[str | None, bool]:
    try:
        work, job = pickle.loads(data)
    except Exception as error:  # of a module that cannot be imported here, say
        return unexpected(error), False
    count(0)  # imports are over
    try:
        return attempt(work, job, count), False
    except InputError as error:
        return str(error), True
