"""Plans handed out to a Dask cluster on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kdml_med.errors import InputError
from kdml_med.experiments.plan import Plan, expand, read_plan
from kdml_med.experiments.scheduling import Outcome, run_plan
from kdml_med.experiments.training import train_cell
from tests.experiments.conftest import Study
from tests.experiments.fakes import REPOSITORY, calls, fake_train, small_plan
from tests.workers.test_cluster import Cluster, threads_as_workers

pytest.importorskip("distributed")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(plan: Plan, out: Path, scheduler: str, **script: str) -> Outcome:
    return run_plan(plan, expand(plan), out, scheduler=scheduler, train=partial(fake_train, script=script))


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


def test_workers_that_cannot_be_used_end_the_run_before_anything_is_written(tmp_path: Path, out: Path) -> None:
    with threads_as_workers(1, threads=2) as cluster, pytest.raises(InputError, match="has 2 threads"):
        run(small_plan(tmp_path), out, cluster.scheduler_address)
    assert list(out.iterdir()) == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.stop()


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
