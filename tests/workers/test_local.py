"""Jobs in processes of this machine: crashes, hangs, interruptions, progress."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdml_med.errors import InputError
from kdml_med.workers import LocalWorkers, local, run_jobs, work_through
from tests.workers.jobs import Explosive, Slow, Stranger, Task, calls, do, processes
from tests.workers.test_jobs import ORDER

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nobody_left_behind() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def run(tasks: Sequence[Any], folder: Path, *, processes: int = 2, **more: Any) -> dict[str, str | None]:
    """Why each could not be done, by name."""
    settings = {"on_progress": lambda _: None, "crashed": "it crashed"} | more
    ended = list(run_jobs(tasks, partial(do, folder=folder), processes=processes, **settings))
    assert len(ended) == len(tasks)
    return {task.name: failure for task, failure in ended}


def test_two_jobs_work_at_the_same_time_in_processes_of_their_own(tmp_path: Path) -> None:
    assert run([Task("a", "meet"), Task("b", "meet"), Task("c")], tmp_path) == {"a": None, "b": None, "c": None}
    assert sorted(calls(tmp_path)[:2]) == ["begin a", "begin b"]
    assert len(processes(tmp_path)) == 2
    assert os.getpid() not in processes(tmp_path)


@pytest.mark.parametrize(("names", "number"), [("ab", 1), ("ab", 0), ("a", 4)])
def test_one_process_or_one_job_needs_no_other_process(tmp_path: Path, names: str, number: int) -> None:
    assert run([Task(name) for name in names], tmp_path, processes=number) == dict.fromkeys(names)
    assert processes(tmp_path) == [os.getpid()]


def test_no_jobs_end_at_once(tmp_path: Path) -> None:
    assert run([], tmp_path) == {}


@pytest.mark.parametrize("number", [1, 2])
def test_a_job_that_fails_says_why_and_the_others_are_done(tmp_path: Path, number: int) -> None:
    tasks = [Task("a", "fail"), Task("b", "raise"), Task("c", "exit"), Task("d")]
    assert run(tasks, tmp_path, processes=number) == {
        "a": "it was to fail",
        "b": "unexpected ValueError: it was to raise",
        "c": "unexpected SystemExit: it was to exit",
        "d": None,
    }


def test_a_job_that_cannot_be_received_says_why(tmp_path: Path) -> None:
    failures = run([Stranger("a"), Task("b")], tmp_path)
    assert failures == {"a": "unexpected ModuleNotFoundError: No module named 'no_such_module'", "b": None}


@pytest.mark.parametrize("crash", [Task("a", "crash"), Explosive("a")])
def test_a_crash_costs_one_job_and_touches_no_other(tmp_path: Path, crash: Task | Explosive) -> None:
    others = [Task(name) for name in "bcde"]
    assert run([crash, *others], tmp_path) == {"a": "it crashed"} | dict.fromkeys("bcde")
    begun = calls(tmp_path, "begin")
    assert begun.count("a") == (2 if isinstance(crash, Task) else 0)
    assert sorted(name for name in begun if name != "a") == list("bcde")


def test_a_job_that_crashed_once_is_done_the_second_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert run([Task("a", "crash once"), Task("b", "crash once")], tmp_path) == {"a": None, "b": None}
    assert "job 2: it crashed; once more" in caplog.text


def test_a_crash_is_noticed_though_a_child_of_the_process_lives_on(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run([Task("a", "fork and crash"), Task("b")], tmp_path) == {"a": "it crashed", "b": None}
    assert time.monotonic() - started < local._TIDYING_S


def test_a_process_does_many_jobs(tmp_path: Path) -> None:
    tasks = [Task(name) for name in "abc"]
    with LocalWorkers(1) as workers:
        ended = list(work_through(tasks, partial(do, folder=tmp_path), workers, order=ORDER))
    assert ended == [(task, None) for task in tasks]
    assert len(processes(tmp_path)) == 1


def test_a_process_lost_while_it_had_nothing_to_do_is_replaced(tmp_path: Path) -> None:
    work = partial(do, folder=tmp_path)
    with LocalWorkers(1) as workers:
        assert list(work_through([Task("a")], work, workers)) == [(Task("a"), None)]
        (lost,) = processes(tmp_path)
        os.kill(lost, signal.SIGKILL)
        while _lives(lost):
            time.sleep(0.01)
        assert list(work_through([Task("b")], work, workers)) == [(Task("b"), None)]
    assert calls(tmp_path) == ["begin a", "end a", "begin b", "end b"]


@pytest.mark.parametrize(("how", "number"), [("hang", 1), ("hang in C", 2)])
def test_a_job_without_progress_is_ended_and_the_others_are_done(tmp_path: Path, how: str, number: int) -> None:
    tasks = [Task("a", how), Task("b"), Task("c", "tell now and then")]
    failures = run(tasks, tmp_path, processes=number, patience_s=2.0)
    assert failures == {"a": "no progress for 2 s", "b": None, "c": None}
    assert calls(tmp_path, "begin").count("a") == 1, "another try would take as long"


def test_the_imports_of_a_new_process_are_not_held_against_a_job(tmp_path: Path) -> None:
    assert run([Slow("a"), Slow("b")], tmp_path, patience_s=1.0) == {"a": None, "b": None}


def test_time_that_all_processes_are_stopped_is_not_held_against_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalWorkers(1, patience_s=5.0) as workers:
        workers.begin(0, partial(do, folder=tmp_path), Task("a", "nap"))
        while not calls(tmp_path):
            assert workers.wait(lambda _: None) == []
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + 1000.0)
        ends = []
        while not ends:
            ends = workers.wait(lambda _: None)
    assert ends[0].failure is None


@pytest.mark.parametrize("number", [1, 2])
def test_progress_counts_add_up(tmp_path: Path, number: int) -> None:
    counts: list[int] = []
    tasks = [Task(name, "count in threads") for name in "abc"]
    assert run(tasks, tmp_path, processes=number, on_progress=counts.append) == dict.fromkeys("abc")
    assert sum(counts) == 12_000
    assert min(counts) >= 0


def test_progress_is_told_before_a_job_ends(tmp_path: Path) -> None:
    told = []
    for _ in run_jobs(
        [Task("a", "tell now and then"), Task("b", "count in threads")], partial(do, folder=tmp_path),
        processes=2, on_progress=lambda more: told.append((more, calls(tmp_path, "end"))), crashed="",
    ):  # fmt: skip
        pass
    assert any(ended == ["b"] for _, ended in told)
    assert sum(more for more, _ in told) == 4_000


def test_an_input_error_from_the_work_ends_all_of_it_at_once(tmp_path: Path) -> None:
    tasks = [Task("a", "refuse when another hangs"), Task("b", "hang"), Task("c")]
    started = time.monotonic()
    with pytest.raises(InputError, match="the output cannot be written"):
        run(tasks, tmp_path)
    assert time.monotonic() - started < local._TIDYING_S
    assert calls(tmp_path, "end") == []
    assert not any(_lives(pid) for pid in processes(tmp_path))


def test_an_input_error_in_this_process_ends_all_of_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the output cannot be written"):
        run([Task("a", "refuse"), Task("b")], tmp_path, processes=1)
    assert calls(tmp_path) == ["begin a"]


def test_a_walk_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    walk = run_jobs(
        [Task("a"), Task("b", "hang"), Task("c")], partial(do, folder=tmp_path),
        processes=2, on_progress=lambda _: None, crashed="",
    )  # fmt: skip
    assert next(walk) == (Task("a"), None)
    walk.close()  # type: ignore[attr-defined]
    assert not any(_lives(pid) for pid in processes(tmp_path))


def test_workers_that_nobody_is_are_refused() -> None:
    with pytest.raises(ValueError, match="0 processes do no work"):
        LocalWorkers(0)


PROGRAM = """
import signal
from functools import partial
from pathlib import Path
from kdml_med.errors import ExitCode
from kdml_med.program import run
from kdml_med.workers import run_jobs
from tests.workers.jobs import Task, do

def command() -> ExitCode:
    tasks = [Task("a"), Task("b", {does!r}), Task("c")]
    walk = run_jobs(
        tasks, partial(do, folder=Path({folder!r})), processes=2, on_progress=lambda _: None, crashed="it crashed"
    )
    {use}
    return ExitCode.OK

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have it ignored
    run(command)
"""


@contextlib.contextmanager
def program(folder: Path, does: str, use: str) -> Iterator[subprocess.Popen[str]]:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(folder=str(folder), does=does, use=use))
    process = subprocess.Popen(
        [sys.executable, path], stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_program_leaves_no_process_behind(tmp_path: Path, how: signal.Signals) -> None:
    with program(tmp_path, "hang", "list(walk)") as process:
        deadline = time.monotonic() + 120
        while not ((tmp_path / "hangs").exists() and "end c" in calls(tmp_path)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: all of them get it
        else:
            process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert "leaked" not in errors
        if how is signal.SIGINT:
            assert process.returncode == 130
            assert errors.splitlines()[-1] == "interrupted; run the same command again to go on"
        while any(_lives(worker) for worker in processes(tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "end b" not in calls(tmp_path)


def test_a_program_ends_though_it_left_a_walk_open(tmp_path: Path) -> None:
    use = "globals()['kept'] = walk; next(walk)"
    with program(tmp_path, "hang", use) as process:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert not any(_lives(worker) for worker in processes(tmp_path))


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # A process that nobody has waited for yet is dead, but still listed.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
