"""Plans handed out to a Dask cluster on this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kdml_med.errors import InputError
from kdml_med.experiments import workers
from kdml_med.experiments.plan import Plan, expand, read_plan
from kdml_med.experiments.scheduling import Outcome, run_plan
from kdml_med.experiments.training import train_cell
from tests.experiments.conftest import Study
from tests.experiments.fakes import REPOSITORY, calls, fake_train, processes, small_plan

distributed = pytest.importorskip("distributed")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(plan: Plan, out: Path, scheduler: str, **script: str) -> Outcome:
    return run_plan(plan, expand(plan), out, scheduler=scheduler, train=partial(fake_train, script=script))


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


def test_workers_do_every_cell_after_the_one_it_needs(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path, arms=["kd_offline", "ml", "kdml"])
    with threads_as_workers(2) as cluster:
        assert run(plan, out, cluster.scheduler_address, teacher_only="meet") == Outcome(done=4)
        noted = calls(out)
        assert noted.index("end teacher_only") < noted.index("begin kd_offline")
        assert run(plan, out, cluster.scheduler_address) == Outcome(skipped=4)


def test_failures_on_workers_are_told_and_passed_on(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path, arms=["kd_offline", "ml", "kdml"])
    with threads_as_workers(1) as cluster:
        outcome = run(plan, out, cluster.scheduler_address, teacher_only="fail", ml="raise")
    assert {path.split("/")[2]: reason for path, reason in outcome.failures.items()} == {
        "teacher_only": "it was to fail",
        "kd_offline": "its teacher, cells/edge/teacher_only/seed0, could not be trained",
        "ml": "unexpected ValueError: it was to raise",
    }
    assert outcome.done == 1


def test_workers_with_several_threads_are_refused(tmp_path: Path, out: Path) -> None:
    with (
        threads_as_workers(1, threads=2) as cluster,
        pytest.raises(InputError, match=r"has 2 threads.*--nthreads 1"),
    ):
        run(small_plan(tmp_path), out, cluster.scheduler_address)
    assert list(out.iterdir()) == []


def test_a_worker_with_several_threads_that_joins_later_is_told(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with threads_as_workers(1, threads=2) as cluster:
        monkeypatch.setattr(distributed.Client, "nthreads", lambda _: {})
        outcome = run(small_plan(tmp_path), out, cluster.scheduler_address)
    assert len(outcome.failures) == 3
    assert all("--nthreads 1" in reason for reason in outcome.failures.values())


def test_a_cluster_without_workers_waits_and_says_how_to_start_one(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with threads_as_workers(0) as cluster:
        thread = threading.Thread(target=lambda: _scale_when_asked(cluster, caplog))
        thread.start()
        assert run(small_plan(tmp_path), out, cluster.scheduler_address).done == 3
        thread.join()
    assert f"dask worker {cluster.scheduler_address} --nthreads 1" in caplog.text


def test_a_worker_that_joins_in_the_middle_is_noticed(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.ClusterWorkers, "look_again_s", 0.1)
    with threads_as_workers(1) as cluster:
        thread = threading.Thread(target=lambda: _scale_when_begun(cluster, out))
        thread.start()
        # The first cell ends only when the second has begun, for which there is no worker at first.
        assert run(small_plan(tmp_path), out, cluster.scheduler_address, independent="meet").done == 3
        thread.join()


def _scale_when_begun(cluster: distributed.LocalCluster, out: Path) -> None:
    while not (out / "calls.txt").exists():
        time.sleep(0.05)
    cluster.scale(2)


def _scale_when_asked(cluster: distributed.LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 60
    while "no worker is there yet" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster.scale(1)


def test_every_worker_has_one_cell_and_one_that_joins_gets_the_next(tmp_path: Path, out: Path) -> None:
    plan = small_plan(tmp_path)
    first, second, _ = expand(plan)
    with threads_as_workers(1) as cluster:
        with workers.ClusterWorkers(cluster.scheduler_address) as remote:
            # It ends only when another one has begun.
            future = remote.submit(partial(fake_train, script={"independent": "meet"}), first, plan, out)
            assert not remote.has_room()
            cluster.scale(2)
            cluster.wait_for_workers(2)
            assert remote.has_room()
            assert remote.submit(fake_train, second, plan, out).result(60) is None
            assert future.result(60) is None
            assert not remote.has_room()
            remote.release(future)
            assert remote.has_room()
        assert run(plan, out, cluster.scheduler_address) == Outcome(done=1, skipped=2)


def test_a_worker_that_does_not_see_the_folders_says_so(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    with threads_as_workers(1) as cluster, workers.ClusterWorkers(cluster.scheduler_address) as remote:
        future = remote.submit(fake_train, expand(plan)[0], plan, tmp_path / "nowhere")
        reason = future.result(60)
    assert reason is not None
    assert f"has no folder {tmp_path / 'nowhere'}: it has to see the same folders" in reason


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:1", "127.0.0.1:1", "nonsense://x:1", "tcp://no.such.host.invalid:8786", ""]
)
def test_an_address_where_nobody_answers_is_named(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(workers, "_CONNECT_TIMEOUT", "1s")
    with pytest.raises(InputError) as caught:
        run(small_plan(tmp_path), out, address)
    assert str(caught.value).startswith(f"no Dask scheduler answers at {address!r} (")
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []


def test_without_dask_it_is_said_what_to_install(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'kdml_med\[cluster\]'"):
        run(small_plan(tmp_path), out, "tcp://127.0.0.1:1")


class Cluster:
    """A scheduler and two workers in processes of their own, started as the documentation says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A cell that takes its worker down counts at once, instead of after three more workers.
        self.environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"
        }  # fmt: skip
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
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.stop()


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_is_done_by_another(tmp_path: Path, out: Path, cluster: Cluster) -> None:
    def kill() -> None:
        while not (out / "lingers").exists():
            time.sleep(0.1)
        begun = [line.split() for line in (out / "calls.txt").read_text().splitlines()]
        os.kill(next(int(pid) for what, arm, pid in begun if (what, arm) == ("begin", "ml")), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert run(small_plan(tmp_path), out, cluster.address, ml="linger once") == Outcome(done=3)
    killer.join()
    assert calls(out, "begin").count("ml") == 2
    assert len(processes(out)) >= 2


@pytest.mark.slow
def test_a_cell_that_takes_worker_after_worker_down_fails_alone(tmp_path: Path, out: Path, cluster: Cluster) -> None:
    outcome = run(small_plan(tmp_path, arms=["ml", "kdml"]), out, cluster.address, ml="crash")
    assert outcome.done == 1
    assert outcome.failures == {
        "cells/edge/ml/seed0": "its worker ended at once several times, probably for want of memory"
    }


@pytest.mark.slow
def test_a_cell_trained_on_a_worker_has_the_bytes_of_one_trained_here(
    tmp_path: Path, out: Path, cluster: Cluster, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    plan = read_plan(study.plan)
    cells = [cell for cell in expand(plan) if cell.arm in ("teacher_only", "kd_offline")]
    assert run_plan(plan, cells, out, scheduler=cluster.address, train=train_cell) == Outcome(done=2)
    for cell in cells:
        for name in ("losses.csv", "predictions.parquet", "evaluation_test/metrics.json", "cell.json"):
            assert (out / cell.path / name).read_bytes() == (study.out / cell.path / name).read_bytes(), name


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_run_with_one_line(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    lost = Cluster(folder)

    def kill() -> None:
        while not (out / "lingers").exists():
            time.sleep(0.1)
        os.killpg(lost.scheduler.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(InputError, match="connection to the Dask scheduler was lost"):
            run(small_plan(tmp_path), out, lost.address, ml="linger")
    finally:
        killer.join()
        lost.stop()
