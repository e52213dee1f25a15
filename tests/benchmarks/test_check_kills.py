"""The check of killed trainings sees every difference that it looks for."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdml_med.handlers.tensorboard_events import begin_events
from tests.benchmarks import check_kills
from tests.benchmarks.check_kills import differences, unequal
from tests.results import points

STATE = {"network": {"w": torch.tensor([0.0, 1.0])}, "epoch": 3, "groups": [{"lr": 0.1}], "best": math.nan}


def run_folder(path: Path, *, last: int = 3) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    torch.save(STATE, path / "checkpoints" / "last.pt")
    torch.save({"w": torch.ones(2)}, path / "checkpoints" / "best.pt")
    torch.save({"w": torch.ones(2)}, path / "checkpoints" / "student_0.pt")
    (path / "losses.csv").write_text("epoch,value\n1,0.5\n")
    (path / "metrics.json").write_text(json.dumps({"auroc": 0.5, "training_speed": {"seconds": time.time()}}))
    pd.DataFrame({"probability": [0.25, 0.5]}).to_parquet(path / "predictions.parquet")
    with begin_events(path / "tensorboard" / "cohort") as writer:
        for step in range(last):
            writer.add_scalar("loss", 1.0 / (step + 1), step)
            writer.add_scalar("speed/steps_per_second", float(np.random.default_rng().random()), step)
    return path


def test_equal_runs_have_no_differences(tmp_path: Path) -> None:
    assert differences(run_folder(tmp_path / "a"), run_folder(tmp_path / "b")) == []


def test_every_difference_is_named(tmp_path: Path) -> None:
    reference, other = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", last=2)
    torch.save(STATE | {"network": {"w": torch.tensor([-0.0, 1.0])}}, other / "checkpoints" / "last.pt")
    (other / "checkpoints" / "student_0.pt").unlink()
    (other / "losses.csv").write_text("epoch,value\n1,0.5\n1,0.5\n")
    (other / "metrics.json").write_text(json.dumps({"auroc": 0.75}))
    pd.DataFrame({"probability": [0.25, 0.75]}).to_parquet(other / "predictions.parquet")
    (other / "figures").mkdir()
    (other / "figures" / "roc.csv").write_text("x,y\n")
    assert differences(reference, other) == [
        "figures/roc.csv",
        "losses.csv",
        "predictions.parquet",
        "metrics.json: /auroc",
        "last.pt: /network/w",
        "student_0.pt is not there",
        "TensorBoard: /cohort/loss",
        "TensorBoard: /cohort/speed/steps_per_second",
    ]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda state: state["groups"][0].update(lr=0.1), []),
        (lambda state: state["groups"][0].update(lr=0.2), ["/groups/0/lr"]),
        (lambda state: state["groups"].append({}), ["/groups"]),
        (lambda state: state.update(epoch=3.0), ["/epoch"]),
        (lambda state: state.update(best=1.0), ["/best"]),
        (lambda state: state["network"].update(w=state["network"]["w"].double()), ["/network/w"]),
        (lambda state: state["network"].pop("w"), ["/network/w"]),
    ],
)
def test_states_are_compared_bit_by_bit(change, place: list[str]) -> None:
    other = copy.deepcopy(STATE)
    change(other)
    assert unequal(STATE, other) == place


def test_points_of_a_training_that_goes_on_are_read_as_one_curve(tmp_path: Path) -> None:
    for start, purge in ((0, None), (2, 2)):
        with begin_events(tmp_path / "cohort", purge_step=purge) as writer:
            for step in range(start, start + 3):
                writer.add_scalar("loss", step / 2, step)
    assert points(tmp_path) == {"cohort/loss": [(step, step / 2) for step in range(5)]}


@pytest.mark.parametrize(("lengths", "hit", "moments"), [([9.0], 1, 1), ([0.0, 0.0, 9.0], 1, 3), ([0.0] * 9, 0, 5)])
def test_a_training_that_has_ended_is_not_counted_as_killed(
    lengths: list[float], hit: int, moments: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The undisturbed one takes eight seconds; ``lengths`` are those of the ones to be killed."""
    drawn: list[float] = []

    def train(dataset: Path, run: Path, options: list[str], *, kill_after: float | None = None) -> float | None:
        if not run.exists():
            run_folder(run)
            (run / "history.csv").write_text("epoch\n")
        if kill_after is None:
            return 8.0
        drawn.append(kill_after)
        took = lengths[len(drawn) - 1]
        return None if took > kill_after else took

    monkeypatch.setattr(check_kills, "train", train)
    done = check_kills.check("msi", tmp_path, tmp_path, 1, np.random.default_rng(0))
    assert (done.hit, done.resumed, done.wrong, len(drawn)) == (hit, hit, 0, moments)


def test_a_training_that_writes_no_tables_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_kills, "train", lambda _, run, *__, **___: run_folder(run) and 8.0)
    with pytest.raises(SystemExit, match=r"has no history\.csv"):
        check_kills.check("msi", tmp_path, tmp_path, 1, np.random.default_rng(0))
