"""The walk of jobs through workers that answer as they please."""

from __future__ import annotations

import errno
import random
from collections import Counter
from types import TracebackType
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdml_med.errors import InputError
from kdml_med.workers import Order, work_through
from kdml_med.workers.jobs import Count, End, Work
from kdml_med.workers.local import ThisProcess
from tests.workers.jobs import Task

ORDER = Order(name=lambda task: task.name, needs=lambda task: task.needs)


class Moody:
    """Workers that end jobs in any order, and lose some of them as often as they are told."""

    def __init__(self, number: int, losses: dict[str, int], seed: int) -> None:
        self.number, self.losses, self.random = number, losses, random.Random(seed)
        self.running: dict[int, Task] = {}
        self.begun: list[str] = []
        self.done: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def has_room(self) -> bool:
        return len(self.running) < self.number

    def begin(self, number: int, work: Work, job: Any) -> None:
        assert self.has_room()
        assert set(job.needs) <= set(self.done)
        self.running[number] = job
        self.begun.append(job.name)

    def wait(self, on_progress: Count) -> list[End]:
        assert self.running
        numbers = self.random.sample(list(self.running), self.random.randint(0, len(self.running)))
        return [self._end(number, self.running.pop(number)) for number in numbers]

    def _end(self, number: int, task: Task) -> End:
        if self.begun.count(task.name) <= self.losses.get(task.name, 0):
            return End(number, "lost", lost=True)
        if task.does == "fail":
            return End(number, "it was to fail")
        self.done.append(task.name)
        return End(number, None)


def nothing(_: Task, __: Count) -> None:
    raise AssertionError("these workers do not work")


@st.composite
def task_lists(draw: st.DrawFn) -> list[Task]:
    """Each needs only such that were drawn before it, and they are listed in any order."""
    tasks: list[Task] = []
    for number in range(draw(st.integers(0, 8))):
        names = [task.name for task in tasks]
        needs = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
        tasks.append(Task(f"job{number}", draw(st.sampled_from(["nothing", "nothing", "fail"])), tuple(needs)))
    return list(draw(st.permutations(tasks)))


@given(task_lists(), st.integers(1, 4), st.dictionaries(st.integers(0, 7), st.integers(1, 3)), st.integers(0, 99))
def test_every_job_ends_once_behind_those_that_it_needs(
    tasks: list[Task], number: int, losses: dict[int, int], seed: int
) -> None:
    lost = {f"job{place}": times for place, times in losses.items()}
    workers = Moody(number, lost, seed)
    ended = list(work_through(tasks, nothing, workers, order=ORDER))
    assert Counter(task.name for task, _ in ended) == Counter(task.name for task in tasks)
    failures = {task.name: failure for task, failure in ended}
    failed = {name for name, failure in failures.items() if failure is not None}
    for task in tasks:
        unmet = failed & set(task.needs)
        if unmet:
            assert failures[task.name] in {f"{name}, which it needs, could not be done" for name in unmet}
            assert task.name not in workers.begun
        elif lost.get(task.name, 0) >= 2:
            assert failures[task.name] == "lost"
            assert workers.begun.count(task.name) == 2, "one more try"
        else:
            assert failures[task.name] == ("it was to fail" if task.does == "fail" else None)
            assert workers.begun.count(task.name) == 1 + lost.get(task.name, 0)


def test_jobs_that_wait_for_none_begin_in_the_order_of_the_list() -> None:
    tasks = [Task(name) for name in "hgfedcba"]
    workers = Moody(3, {}, 0)
    assert {failure for _, failure in work_through(tasks, nothing, workers)} == {None}
    assert workers.begun == list("hgfedcba")


def test_a_need_that_is_not_among_the_jobs_counts_as_done() -> None:
    task = Task("a", needs=("done yesterday",))
    workers = Moody(1, {}, 0)
    workers.done.append("done yesterday")
    assert list(work_through([task], nothing, workers, order=ORDER)) == [(task, None)]


def test_jobs_that_wait_for_each_other_are_refused_after_the_others_are_done() -> None:
    tasks = [Task("a", needs=("b",)), Task("b", needs=("a",)), Task("c")]
    walk = work_through(tasks, nothing, Moody(2, {}, 0), order=ORDER)
    assert next(walk) == (tasks[2], None)
    with pytest.raises(ValueError, match="jobs wait for each other: a, b"):
        next(walk)


def fail_with(error: Exception) -> Work:
    def work(job: Any, count: Count) -> str | None:
        raise error

    return work


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_ends_all_jobs_because_it_would_meet_them_all(number: int) -> None:
    error = OSError(number, "No room", "out/a.jpg")
    with pytest.raises(InputError, match=r"^out/a\.jpg: No room\. Free some space"):
        list(work_through([1, 2], fail_with(error), ThisProcess()))


def test_a_file_that_one_job_cannot_read_costs_that_job() -> None:
    ends = list(work_through([1, 2], fail_with(OSError(errno.EIO, "Input/output error", "in.svs")), ThisProcess()))
    assert [job for job, _ in ends] == [1, 2]
    assert all("Input/output error" in str(failure) for _, failure in ends)
