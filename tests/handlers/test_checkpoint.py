"""What a run goes on from when its checkpoint was cut short or exchanged, and what a full disk leaves of it."""

from __future__ import annotations

import pickle
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import nn

from kdml_med.bundle.evaluation import load_best_weights
from kdml_med.errors import InputError
from kdml_med.handlers import CohortCheckpoint
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from kdml_med.runs import checkpoint_path, write_checkpoint
from tests.engines.test_trainer import batches, equal_states, trainer_of
from tests.networks.tiny import PLAIN, TINY


def train(run_dir: Path, *, epochs: int = 1, students: list[Any] | None = None) -> nn.Module:
    """Train a small cohort, or go on with it."""
    cohort = build_cohort(seed=3, students=students or [TINY, TINY], use_teacher=False)
    trainer = trainer_of(cohort, batches(2), ClassificationCohortLoss(beta=0.0), epochs=epochs)
    CohortCheckpoint(run_dir, cohort, trainer.optimizer).attach(trainer)
    trainer.run()
    return cohort


def test_a_damaged_last_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    train(tmp_path)
    path = checkpoint_path(tmp_path, "last")
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    damages: list[Any] = [whole[:size] for size in (0, 100, len(whole) // 2, len(whole) - 1)]
    damages += [pickle.dumps(Path("an object")), b"<html>"]
    damages += [{key: value for key, value in state.items() if key != name} for name in state]
    damages += [state | {"position": state["position"] | {name: "1"}} for name in state["position"]]
    damages += [state | {"network": [1]}, state["network"], [1]]
    damages += [state | {name: {}} for name in ("network", "optimizer", "random", "position", "means")]
    damages += [state | {"network": {name: value[:1] for name, value in state["network"].items() if value.ndim}}]
    damages += [state | {"random": {"cpu": torch.ones(3), "cuda": []}}]
    for damage in damages:
        if isinstance(damage, bytes):
            path.write_bytes(damage)
        else:
            torch.save(damage, path)
        with pytest.raises(InputError) as caught:
            train(tmp_path, epochs=2)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert message.endswith("Delete it to train from the beginning, or name another --run_dir.")
        assert "\n" not in message


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(InputError, match=r"last\.pt does not hold what was written there"):
        train(tmp_path, epochs=2, students=[PLAIN, TINY])
    cohort = build_cohort(students=[PLAIN, TINY], use_teacher=False)
    with pytest.raises(InputError, match=r"best\.pt does not hold what was written there .*Train again"):
        load_best_weights(cohort, str(tmp_path))


def validated(run_dir: Path, values: list[float], *, epochs: int, keep: int = 9) -> dict[str, Any]:
    """Train with a key metric of these values, epoch by epoch, or go on; returns what best.pt holds."""
    cohort = build_cohort(seed=3, students=[TINY, TINY], use_teacher=False)
    evaluator: Any = SimpleNamespace(state=SimpleNamespace(best_metric=-1.0, best_metric_epoch=-1))
    trainer = trainer_of(cohort, batches(2), ClassificationCohortLoss(beta=0.0), epochs=epochs)

    def validate(engine: Any) -> None:
        state, value = evaluator.state, values[engine.state.epoch - 1]
        if state.best_metric_epoch == -1 or value >= state.best_metric:  # as MONAI's evaluator compares
            state.best_metric, state.best_metric_epoch = value, engine.state.epoch

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    CohortCheckpoint(run_dir, cohort, trainer.optimizer, evaluator=evaluator, keep=keep).attach(trainer)
    trainer.run()
    best: dict[str, Any] = torch.load(checkpoint_path(run_dir, "best"), weights_only=True)
    return best


def test_a_damaged_last_checkpoint_beside_older_ones_is_answered_with_the_newest(tmp_path: Path) -> None:
    validated(tmp_path, [0.5] * 12, epochs=11, keep=3)
    folder, path = tmp_path / "checkpoints", checkpoint_path(tmp_path, "last")
    older = {"step_00000018.pt", "step_00000020.pt"}
    assert {file.name for file in folder.glob("step_*.pt")} == older
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut short, or is another file\. Copy step_00000020\.pt over it to go on"):
        validated(tmp_path, [0.5] * 12, epochs=12, keep=3)
    path.unlink()
    with pytest.raises(
        InputError, match=r"last\.pt is missing, and .*copy step_00000020\.pt to it to go on from there"
    ):
        validated(tmp_path, [0.5] * 12, epochs=12, keep=3)
    assert {file.name for file in folder.glob("step_*.pt")} == older
    shutil.copy(folder / "step_00000020.pt", path)
    assert validated(tmp_path, [0.5] * 12, epochs=12, keep=3)["epoch"] == 12


def test_who_goes_back_has_no_best_weights_of_the_future_that_was_left(tmp_path: Path) -> None:
    values = [0.5, 0.8, 0.6, 0.7, 0.9]
    assert validated(tmp_path, values, epochs=5)["epoch"] == 5
    older = tmp_path / "checkpoints/step_00000006.pt"  # of epoch 3, whose best epoch was 2
    shutil.copy(older, checkpoint_path(tmp_path, "last"))
    with pytest.raises(InputError, match=r"best\.pt is of epoch 5, and .* over behind epoch 3: raise --max_epochs"):
        validated(tmp_path, values, epochs=3)
    best = validated(tmp_path, values, epochs=4)
    assert (best["epoch"], best["key_metric"]) == (4, 0.7)
    assert validated(tmp_path, values, epochs=4)["epoch"] == 4


def test_nothing_goes_on_where_a_handler_has_ended_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path)
    cohort = build_cohort(seed=3, students=[TINY, TINY], use_teacher=False)
    trainer = trainer_of(cohort, batches(2), ClassificationCohortLoss(beta=0.0), epochs=2)
    trainer.add_event_handler(Events.STARTED, trainer.terminate)
    CohortCheckpoint(tmp_path, cohort, trainer.optimizer).attach(trainer)
    caplog.set_level("INFO", "kdml_med")
    trainer.run()
    assert trainer.state.epoch == 1
    assert caplog.messages == []


def test_a_best_file_that_is_missing_is_made_anew_and_a_damaged_one_named(tmp_path: Path) -> None:
    validated(tmp_path, [0.9], epochs=1)
    path = checkpoint_path(tmp_path, "best")
    path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"best\.pt cannot be read .* Delete it to keep the best of the epochs to come"
    ):
        validated(tmp_path, [0.9, 0.5], epochs=2)
    path.unlink()
    assert validated(tmp_path, [0.9, 0.5], epochs=2)["epoch"] == 2


def test_a_full_disk_costs_the_epoch_and_no_more(tmp_path: Path) -> None:
    train(tmp_path / "full")
    before = checkpoint_path(tmp_path / "full", "last").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 100, limits[1]))  # the others are smaller
    try:
        with pytest.raises(InputError, match=r"^cannot write .*last\.pt: File too large\. Free some space"):
            train(tmp_path / "full", epochs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint_path(tmp_path / "full", "last").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    assert equal_states(train(tmp_path / "full", epochs=2), train(tmp_path / "room", epochs=2))


ALONE = ("student_0", "student_1")
WRITTEN = ("best", *ALONE, "last")
"""Files of an epoch that is the best so far."""


def bytes_of(run_dir: Path) -> dict[str, bytes]:
    return {name: checkpoint_path(run_dir, name).read_bytes() for name in WRITTEN}


def agrees(run_dir: Path) -> bool:
    """Whether files of single networks hold what best.pt does."""
    best = torch.load(checkpoint_path(run_dir, "best"), weights_only=True)["network"]
    return all(
        torch.equal(value, best[f"networks.{name}.{key}"])
        for name in ALONE
        for key, value in torch.load(checkpoint_path(run_dir, name), weights_only=True).items()
    )


@pytest.mark.parametrize("written", range(1, 2 * len(WRITTEN)))
def test_a_disk_that_is_full_at_any_file_leaves_no_best_weights_of_two_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    values = [0.5, 0.8]
    validated(tmp_path / "whole", values, epochs=2, keep=1)
    left = written

    def write(path: Path, content: Any) -> None:
        nonlocal left
        if left == 0:
            raise OSError("no space")
        left -= 1
        write_checkpoint(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("kdml_med.handlers.checkpoint.write_checkpoint", write)
        with pytest.raises(OSError, match="no space"):
            validated(tmp_path / "full", values, epochs=2, keep=1)
    best, last = (checkpoint_path(tmp_path / "full", name) for name in ("best", "last"))
    done = torch.load(last, weights_only=True)["position"]["epoch"] if last.is_file() else 0
    assert torch.load(best, weights_only=True)["epoch"] > done or agrees(tmp_path / "full"), "nobody can tell"
    other = shutil.copytree(tmp_path / "full", tmp_path / "other")
    validated(tmp_path / "full", values, epochs=2, keep=1)
    assert bytes_of(tmp_path / "full") == bytes_of(tmp_path / "whole")
    # With another schedule, or on a GPU, the epoch that is repeated need not be better than those before.
    validated(other, [0.5, 0.3], epochs=2, keep=1)
    assert agrees(other)


def test_files_of_single_networks_that_are_not_those_of_the_best_are_made_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validated(tmp_path, [0.8, 0.5], epochs=2)
    before = bytes_of(tmp_path)
    first, second = (checkpoint_path(tmp_path, name) for name in ALONE)
    shutil.copy(second, first)  # as earlier versions could leave them
    second.unlink()
    validated(tmp_path, [0.8, 0.5], epochs=2)
    assert bytes_of(tmp_path) == before
    assert [message.split(" does not hold")[0] for message in caplog.messages] == [str(first), str(second)]
    caplog.clear()
    validated(tmp_path, [0.8, 0.5, 0.6], epochs=3)
    assert caplog.messages == []


def test_figures_of_the_best_weights_before_go_when_these_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.5, 0.3, 0.8]
    validated(tmp_path, values, epochs=1)
    figures = tmp_path / "metrics.json"
    figures.write_text("{}")
    validated(tmp_path, values, epochs=1)
    assert figures.is_file(), "nothing was left to do"
    validated(tmp_path, values, epochs=2)
    assert figures.is_file(), "the best weights stayed"

    def write(path: Path, content: Any) -> None:
        assert not figures.is_file(), f"{path.name} is written before"
        write_checkpoint(path, content)

    monkeypatch.setattr("kdml_med.handlers.checkpoint.write_checkpoint", write)
    assert validated(tmp_path, values, epochs=3)["epoch"] == 3


def taught(run_dir: Path, teacher: Path, *, epochs: int = 1) -> dict[str, torch.Tensor]:
    """Train a student of a frozen teacher, or go on; returns what the run says of its teacher."""
    cohort = build_cohort(seed=3, teacher=TINY, students=[TINY], teacher_checkpoint=str(teacher))
    trainer = trainer_of(cohort, batches(2), ClassificationCohortLoss(train_teacher=False), epochs=epochs)
    CohortCheckpoint(run_dir, cohort, trainer.optimizer).attach(trainer)
    trainer.run()
    kept: dict[str, torch.Tensor] = torch.load(checkpoint_path(run_dir, "teacher"), weights_only=True)
    return kept


def write_teacher(path: Path, *, seed: int) -> dict[str, torch.Tensor]:
    network = build_cohort(seed=seed, teacher=TINY, students=[TINY]).networks["teacher"]
    torch.save(network.state_dict(), path)
    return network.state_dict()


def test_a_run_begun_anew_keeps_the_frozen_teacher_that_it_learned_from(tmp_path: Path) -> None:
    run_dir, path = tmp_path / "run", tmp_path / "teacher.pt"
    first = write_teacher(path, seed=0)
    assert all(torch.equal(value, first[name]) for name, value in taught(run_dir, path).items())
    second = write_teacher(path, seed=1)
    checkpoint_path(run_dir, "last").unlink()
    assert all(torch.equal(value, second[name]) for name, value in taught(run_dir, path).items())
    # As left by a run begun anew that was killed within its first epoch, behind a checkpoint.
    torch.save(first, checkpoint_path(run_dir, "teacher"))
    kept = taught(run_dir, path, epochs=2)
    assert all(torch.equal(value, second[name]) for name, value in kept.items())


def test_a_frozen_teacher_is_written_once_by_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(path: Path, content: Any) -> None:
        written.append(path.name)
        write_checkpoint(path, content)

    write_teacher(tmp_path / "teacher.pt", seed=0)
    monkeypatch.setattr("kdml_med.handlers.checkpoint.write_checkpoint", write)
    taught(tmp_path / "run", tmp_path / "teacher.pt", epochs=3)
    assert (written.count("teacher.pt"), written.count("student_0.pt")) == (1, 3)
