"""Jobs handed out to a Dask cluster on this machine."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from kdml_med.errors import InputError
from kdml_med.workers import ClusterWorkers, cluster, work_through
from tests.workers.jobs import Task, calls, do, processes
from tests.workers.test_jobs import ORDER

distributed = pytest.importorskip("distributed")

REPOSITORY = Path(__file__).resolve().parents[2]


def run(tasks: Sequence[Task], folder: Path, address: str) -> dict[str, str | None]:
    """Why each could not be done, by name."""
    with ClusterWorkers(address, folders=[folder]) as workers:
        ended = list(work_through(tasks, partial(do, folder=folder), workers, order=ORDER))
    assert len(ended) == len(tasks)
    return {task.name: failure for task, failure in ended}


def threads_as_workers(number: int, *, threads: int = 1) -> distributed.LocalCluster:
    """A scheduler that is reached over TCP, with workers in this process: quick, and good enough for fakes."""
    return distributed.LocalCluster(
        n_workers=number,
        threads_per_worker=threads,
        processes=False,
        protocol="tcp://",
        dashboard_address=None,
        silence_logs=False,
    )


def test_workers_do_every_job_behind_those_that_it_needs(tmp_path: Path) -> None:
    tasks = [Task("a", needs=("b", "c")), Task("b", "meet"), Task("c", "meet")]
    with threads_as_workers(2) as dask:
        assert run(tasks, tmp_path, dask.scheduler_address) == dict.fromkeys("abc")
    noted = calls(tmp_path)
    assert sorted(noted[:2]) == ["begin b", "begin c"]
    assert noted[-2:] == ["begin a", "end a"]


def test_failures_on_workers_are_told_and_passed_on(tmp_path: Path) -> None:
    tasks = [Task("a", "fail"), Task("b", "raise"), Task("c", "exit"), Task("d", needs=("a",)), Task("e")]
    with threads_as_workers(1) as dask:
        assert run(tasks, tmp_path, dask.scheduler_address) == {
            "a": "it was to fail",
            "b": "unexpected ValueError: it was to raise",
            "c": "unexpected SystemExit: it was to exit",
            "d": "a, which it needs, could not be done",
            "e": None,
        }


def test_an_input_error_from_the_work_ends_all_of_it(tmp_path: Path) -> None:
    with threads_as_workers(1) as dask, pytest.raises(InputError, match="the output cannot be written"):
        run([Task("a", "refuse"), Task("b")], tmp_path, dask.scheduler_address)
    assert calls(tmp_path) == ["begin a"]


def test_workers_with_several_threads_are_refused(tmp_path: Path) -> None:
    with (
        threads_as_workers(1, threads=2) as dask,
        pytest.raises(InputError, match=r"has 2 threads.*--nthreads 1"),
    ):
        run([Task("a")], tmp_path, dask.scheduler_address)
    assert calls(tmp_path) == []


def test_a_worker_with_several_threads_that_joins_later_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with threads_as_workers(1, threads=2) as dask:
        monkeypatch.setattr(distributed.Client, "nthreads", lambda _: {})
        failures = run([Task("a"), Task("b")], tmp_path, dask.scheduler_address)
    assert ["--nthreads 1" in str(reason) for reason in failures.values()] == [True, True]


def test_a_cluster_without_workers_waits_and_says_how_to_start_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with threads_as_workers(0) as dask:
        thread = threading.Thread(target=lambda: _scale_when_asked(dask, caplog))
        thread.start()
        assert run([Task("a")], tmp_path, dask.scheduler_address) == {"a": None}
        thread.join()
    assert f"dask worker {dask.scheduler_address} --nthreads 1" in caplog.text


def _scale_when_asked(dask: distributed.LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 60
    while "no worker is there yet" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    dask.scale(1)


def test_a_worker_that_joins_in_the_middle_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_LOOK_AGAIN_S", 0.1)
    with threads_as_workers(1) as dask:
        thread = threading.Thread(target=lambda: _scale_when_begun(dask, tmp_path))
        thread.start()
        # The first job ends only when the second has begun, for which there is no worker at first.
        assert run([Task("a", "meet"), Task("b")], tmp_path, dask.scheduler_address) == {"a": None, "b": None}
        thread.join()


def _scale_when_begun(dask: distributed.LocalCluster, folder: Path) -> None:
    while not calls(folder):
        time.sleep(0.05)
    dask.scale(2)


def test_every_worker_has_one_job_and_one_that_joins_gets_the_next(tmp_path: Path) -> None:
    work = partial(do, folder=tmp_path)
    with threads_as_workers(1) as dask, ClusterWorkers(dask.scheduler_address) as remote:
        remote.begin(0, work, Task("a", "meet"))
        assert not remote.has_room()
        dask.scale(2)
        dask.wait_for_workers(2)
        assert remote.has_room()
        remote.begin(1, work, Task("b"))
        assert not remote.has_room()
        ends = []
        while not ends:
            ends = remote.wait(lambda _: None)
        assert remote.has_room()
        while len(ends) < 2:
            ends += remote.wait(lambda _: None)
    assert sorted((end.number, end.failure) for end in ends) == [(0, None), (1, None)]


def test_a_worker_that_does_not_see_the_folders_says_so(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with threads_as_workers(1) as dask:
        (reason,) = run([Task("a")], nowhere, dask.scheduler_address).values()
    assert f"has no folder {nowhere}: it has to see the same folders" in str(reason)


@pytest.fixture
def no_remains() -> Iterator[None]:
    """A client that could not connect is tidied up here: while another is being made, its tidying waits forever."""
    yield
    gc.collect()


@pytest.mark.usefixtures("no_remains")
@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nonsense://x:1", "tcp://no.such.host.invalid:8786", ""]
)
def test_an_address_where_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_TIMEOUT", "1s")
    with pytest.raises(InputError) as caught:
        ClusterWorkers(address)
    assert str(caught.value).startswith(f"no Dask scheduler answers at {address!r} (")
    assert "\n" not in str(caught.value)


def test_without_dask_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'kdml_med\[cluster\]'"):
        ClusterWorkers("tcp://127.0.0.1:1")


def test_progress_is_told_before_a_job_ends_and_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_TELL_EVERY_S", 0.1)
    monkeypatch.setattr(cluster, "_LOOK_AGAIN_S", 0.1)
    counts: list[tuple[int, list[str]]] = []
    tasks = [Task("a", "count now and then"), Task("b", "count in threads"), Task("c", "count now and then")]
    with threads_as_workers(2) as dask, ClusterWorkers(dask.scheduler_address, folders=[tmp_path]) as workers:
        for _ in work_through(
            tasks,
            partial(do, folder=tmp_path),
            workers,
            on_progress=lambda more: counts.append((more, calls(tmp_path, "end"))),
        ):
            pass
    assert sum(more for more, _ in counts) == 8 + 4_000 + 8
    assert min(more for more, _ in counts) >= 0
    assert any(more and "a" not in ended for more, ended in counts)


def test_what_a_lost_worker_had_looked_at_counts_once() -> None:
    progress = cluster._Progress()
    told = []
    for number, total in ((0, 5), (1, 2), (0, 3), (0, 8), (0, 7), (1, 4)):  # job 0 was begun twice
        progress.hear((0.0, [progress.name, number, total]))
        progress.hear((0.0, ["another run", number, 100]))
        told.append(progress.take())
    assert told == [5, 2, 0, 3, 0, 2]


def test_workers_with_other_versions_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter([{"numpy": "1.0"}, {"numpy": "1.1"}])
    monkeypatch.setattr(cluster, "_versions", lambda _: next(versions))
    with (
        threads_as_workers(1) as dask,
        pytest.raises(InputError, match=r"worker tcp://\S+ has numpy 1.1, and 1.0 is here: give all machines"),
    ):
        ClusterWorkers(dask.scheduler_address, libraries=["numpy"])


def test_workers_that_lack_a_package_or_a_folder_say_so(tmp_path: Path) -> None:
    lacks = [cluster._Needs((), {"no-such-package": "1"}), cluster._Needs((tmp_path / "no",), {})]
    assert [cluster._look_around(lack) for lack in lacks] == [
        "has no no-such-package: give all machines the same environment",
        f"has no folder {tmp_path / 'no'}: it has to see the same folders under the same names",
    ]
    assert cluster._look_around(lacks[1].here()) is None, "nobody can have what is not made yet"


class Cluster:
    """A scheduler and two workers in processes of their own, started as the documentation says.

    Args:
        folder: for their files.
        patient: as Dask is unless told otherwise: a job counts as bad that takes four workers down; else one.
    """

    def __init__(self, folder: Path, *, patient: bool = False) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        if not patient:
            self.environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = ""
        deadline = time.monotonic() + 300
        while not self.address:
            assert time.monotonic() < deadline
            assert self.scheduler.poll() is None
            time.sleep(0.1)
            found = [line for line in self.log("scheduler").splitlines() if "Scheduler at:" in line]
            self.address = found[0].split()[-1] if found else ""
        words = ("--nworkers", "2", "--nthreads", "1", "--memory-limit", "0", "--no-dashboard")
        self.workers = self.start("worker", self.address, *words, "--local-directory", str(folder))
        self._wait_for_nannies(deadline)

    def _wait_for_nannies(self, deadline: float) -> None:
        """A worker that is killed before its nanny has seen it start is never replaced."""
        with distributed.Client(self.address) as client:
            client.wait_for_workers(2, timeout=300)
            while set(client.run(lambda dask_worker: dask_worker.status.name, nanny=True).values()) != {"running"}:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def start(self, what: str, *words: str) -> subprocess.Popen[str]:
        with (self.folder / f"{what}.log").open("w") as log:
            command = [str(Path(sys.executable).with_name("dask")), what, *words]
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip

    def log(self, what: str) -> str:
        return (self.folder / f"{what}.log").read_text()

    def stop(self) -> None:
        for process in (self.workers, self.scheduler):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in (self.workers, self.scheduler):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    dask = Cluster(tmp_path_factory.mktemp("cluster"))
    yield dask
    dask.stop()


@pytest.mark.slow
def test_the_job_of_a_killed_worker_is_done_by_another(tmp_path: Path, started: Cluster) -> None:
    killer = threading.Thread(target=lambda: _kill_when_it_hangs(tmp_path))
    killer.start()
    assert run([Task("a", "hang once"), Task("b")], tmp_path, started.address) == {"a": None, "b": None}
    killer.join()
    assert calls(tmp_path, "begin").count("a") == 2
    assert len(processes(tmp_path)) >= 2


def _wait_until_it_hangs(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "hangs").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _kill_when_it_hangs(folder: Path) -> None:
    _wait_until_it_hangs(folder)
    noted = [line.split() for line in (folder / "calls.txt").read_text().splitlines()]
    os.kill(next(int(pid) for what, name, pid in noted if (what, name) == ("begin", "a")), signal.SIGKILL)


@pytest.mark.slow
def test_a_job_that_takes_worker_after_worker_down_fails_alone(tmp_path: Path, started: Cluster) -> None:
    assert run([Task("a", "crash"), Task("b")], tmp_path, started.address) == {
        "a": "its worker ended at once several times, probably for want of memory",
        "b": None,
    }
    assert calls(tmp_path, "begin").count("a") >= 2


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_walk_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    lost = Cluster(folder)

    def kill() -> None:
        _wait_until_it_hangs(tmp_path)
        os.killpg(lost.scheduler.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(InputError, match="connection to the Dask scheduler was lost"):
            run([Task("a", "hang")], tmp_path, lost.address)
    finally:
        killer.join()
        lost.stop()
