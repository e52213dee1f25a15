"""What a job is, what workers are, and the walk of jobs through workers of any kind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from kdml_med.errors import NO_ROOM, InputError, foreseen

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Count = Callable[[int], None]
Work = Callable[[Any, Count], str | None]
"""Called with a job and a function to tell how much more of it was looked at; returns why it failed, or None. Has to be
picklable: a function at module level, or a partial of one. InputError from it ends the whole walk; any other error is
the reason why the one job failed."""

# A fault in a decoder takes the process down each time, and costs one more try; want of memory often does not last.
_ATTEMPTS = 2


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        number: that it was begun with.
        failure: why it could not be done; None when it is.
        lost: whether whoever did it was lost, so that another try may succeed.
    """

    number: int
    failure: str | None
    lost: bool = False


class Workers(Protocol):
    """What jobs are handed out to; used as a context, which ends what is still in work."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def has_room(self) -> bool:
        """Whether there is somebody to begin another job at once; always so while none is in work."""

    def begin(self, number: int, work: Work, job: Any) -> None:
        """Begin a job, which is known by its number from here on."""

    def wait(self, on_progress: Count) -> list[End]:
        """Wait until a job has ended, or for a while.

        Args:
            on_progress: told how much more was looked at, where workers tell.

        Returns:
            Those that have ended; there may be none.

        Raises:
            InputError: from the work, or the workers cannot be reached any more.
        """


@dataclass(frozen=True)
class Order:
    """Which jobs wait for which.

    Attributes:
        name: of a job; no two have the same.
        needs: names of the jobs that have to be done before one. What is not among the jobs counts as done.
        unmet: why a job is not done when one that it needs failed, whose name is put in for {}.
    """

    name: Callable[[Any], str]
    needs: Callable[[Any], Collection[str]]
    unmet: str = "{}, which it needs, could not be done"


def _ignore(_: int) -> None:
    pass


def work_through(
    jobs: Sequence[Job], work: Work, workers: Workers, *, order: Order | None = None, on_progress: Count = _ignore
) -> Iterator[tuple[Job, str | None]]:
    """Do jobs as workers have room, in the order of the list but for those that have to wait.

    A job whose worker is lost gets one more try.

    Args:
        jobs: what to do.
        work: does one.
        workers: who does them; entered by the caller, who ends them.
        order: which jobs wait for which; None where none do.
        on_progress: told from time to time how much more was looked at.

    Yields:
        Each job as it ends, and why it could not be done; None when it is.

    Raises:
        InputError: from the work, or the workers cannot be reached any more.
        ValueError: jobs wait for each other in a circle.
    """
    queue, tries, running = _Queue(jobs, order), Counter[int](), 0
    while queue.left or running:
        for number, failure in queue.take_hopeless():
            yield jobs[number], failure
        while workers.has_room() and (ready := queue.take_ready()) is not None:
            tries[ready] += 1
            running += 1
            workers.begin(ready, work, jobs[ready])
        if not running:
            queue.check()
            continue
        for end in workers.wait(on_progress):
            running -= 1
            if end.lost and tries[end.number] < _ATTEMPTS:
                logger.info("%s: %s; once more", queue.names[end.number], end.failure)
                queue.put_back(end.number)
                continue
            queue.close(end.number, failed=end.failure is not None)
            yield jobs[end.number], end.failure


class _Queue:
    """Jobs that are not begun, by their places in the list."""

    def __init__(self, jobs: Sequence[Any], order: Order | None) -> None:
        self.left = list(range(len(jobs)))
        self._unmet = Order.unmet if order is None else order.unmet
        self.names = [f"job {number + 1}" if order is None else order.name(job) for number, job in enumerate(jobs)]
        self._needs = [frozenset(order.needs(job)) if order else frozenset[str]() for job in jobs]
        self._open, self._failed = set(self.names), set[str]()
        self._ordered = any(self._needs)

    def take_ready(self) -> int | None:
        """The first job that waits for no other."""
        for place, number in enumerate(self.left):
            if not self._needs[number] & self._open:
                return self.left.pop(place)
        return None

    def take_hopeless(self) -> Iterator[tuple[int, str]]:
        """Jobs that need one that failed, and why they are not done; those that need them, too."""
        while self._ordered and self._failed:
            found = [(number, self._needs[number] & self._failed) for number in self.left]
            hopeless = [(number, min(failed)) for number, failed in found if failed]
            if not hopeless:
                return
            for number, need in hopeless:
                self.left.remove(number)
                self.close(number, failed=True)
                yield number, self._unmet.format(need)

    def put_back(self, number: int) -> None:
        """Let a job be the next."""
        self.left.insert(0, number)

    def close(self, number: int, *, failed: bool) -> None:
        """Let the jobs know that wait for one."""
        self._open.discard(self.names[number])
        if failed:
            self._failed.add(self.names[number])

    def check(self) -> None:
        """Refuse jobs that nothing can be begun of."""
        if self.left:
            raise ValueError(f"jobs wait for each other: {', '.join(self.names[number] for number in self.left)}")


def attempt(work: Work, job: Any, count: Count) -> str | None:
    """Do a job.

    Returns:
        Why it failed, in one line: a thousand jobs must not stop at one that hits a fault nobody foresaw.

    Raises:
        InputError: from the work, or the disk is full, which would make all other jobs fail as well.
    """
    try:
        return work(job, count)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise foreseen(error) or error from error
        return unexpected(error)


def unexpected(error: BaseException) -> str:
    """An error that nobody foresaw, in one line."""
    return f"unexpected {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
