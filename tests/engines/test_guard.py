"""Losses that are no numbers or explode: what is said, and which weights are left."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import Tensor

from kdml_med.engines import KDMLTrainer, LossGuard
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from tests.engines.test_trainer import batches, trainer_of
from tests.examples import examples
from tests.networks.tiny import TINY

NAN, INF = float("nan"), float("inf")


def engine_at(batch: int, *, epoch: int = 2, length: int = 5, samples: int = 3) -> SimpleNamespace:
    """A trainer in an epoch, as far as a guard looks at it."""
    names = [f"s{batch}_{number}" for number in range(samples)]
    state = SimpleNamespace(
        epoch=epoch, epoch_length=length, iteration=(epoch - 1) * length + batch, batch={"sample_id": names}
    )
    return SimpleNamespace(state=state, optimizer=torch.optim.SGD([torch.zeros(1)]), scaler=None)


def terms(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def said(engine: Any, **values: float) -> str:
    with pytest.raises(FloatingPointError) as caught:
        LossGuard().check(terms(**values), engine)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_network_batch_and_samples_are_named() -> None:
    text = said(engine_at(4), teacher_task=0.5, student_0_task=NAN, student_1_task=1.0, loss=NAN)
    assert text.startswith(
        "the loss of student_0 is no number in epoch 2, batch 4 of 5 (student_0_task nan), samples s4_0, "
        "s4_1, s4_2. Start"
    )


def test_the_checkpoint_before_is_named() -> None:
    engine = engine_at(1)
    engine.state.checkpoint = "runs/a/checkpoints/last.pt (behind epoch 1)"
    text = said(engine, student_0_task=INF, loss=INF)
    assert "s1_2. The checkpoint before it is runs/a/checkpoints/last.pt (behind epoch 1). Start again" in text


def test_whoever_errs_on_labels_is_named_and_not_those_who_learn_from_it() -> None:
    values = {"teacher_task": NAN, "student_0_task": 1.0, "student_0_kd": NAN, "student_1_kd": NAN, "loss": NAN}
    text = said(engine_at(1), **values)
    assert text.startswith("the loss of teacher is no number")
    assert "(teacher_task nan, student_0_kd nan, student_1_kd nan)" in text
    assert said(engine_at(1), student_1_kd=NAN, loss=NAN).startswith("the loss of student_1 is")
    assert said(engine_at(1), student_1_task=1.0, loss=NAN).startswith("the loss of the cohort is no number in epoch 2")


def test_an_explosion_is_told_from_no_number() -> None:
    assert "student_1 has exploded in epoch 2, batch 3 of 5 (student_1_ml 2.5e+05)" in said(
        engine_at(3), student_0_ml=1.0, student_1_ml=2.5e5, loss=2.5e5
    )


def test_large_terms_of_ones_own_and_sums_are_no_explosion() -> None:
    LossGuard().check(terms(student_0_task=9e4, student_0_weight_norm=1e9, loss=1e9), engine_at(1))


def test_samples_of_a_large_batch_are_counted() -> None:
    text = said(engine_at(1, samples=40), student_0_task=NAN, loss=NAN)
    assert "s1_31 and 8 more. Start" in text
    assert "s1_32" not in text


def test_sample_names_cannot_steer_a_terminal() -> None:
    engine = engine_at(1)
    engine.state.batch = {"sample_id": ["a\nb\x1b[31m"]}
    assert r"samples a\nb\x1b[31m. Start" in said(engine, student_0_task=NAN, loss=NAN)


def run_spoiled(bad: int, guard: LossGuard, *, fused: bool = True) -> tuple[KDMLTrainer, list[dict[str, Tensor]], str]:
    """Train until a guard stops it; the state behind every batch as well, and what it said."""
    cohort, data = build_cohort(seed=2, students=[TINY, TINY], use_teacher=False), batches(6)
    optimizer = torch.optim.AdamW(cohort.parameter_groups(), lr=1e-2, fused=fused)
    trainer = trainer_of(cohort, data, ClassificationCohortLoss(beta=0.0), epochs=2, optimizer=optimizer)
    trainer.guard = guard

    def spoil(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output * NAN if trainer.state.iteration == bad else output

    cohort.networks["student_1"].register_forward_hook(spoil)
    states: list[dict[str, Tensor]] = []

    def remember() -> None:
        weights = dict(cohort.named_parameters()) | {
            f"{number}/{name}": value
            for number, own in optimizer.state_dict()["state"].items()
            for name, value in own.items()
        }
        states.append(copy.deepcopy({name: value.detach() for name, value in weights.items()}))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, remember)
    with pytest.raises(FloatingPointError) as caught:
        trainer.run()
    remember()
    return trainer, states, str(caught.value)


@settings(max_examples=examples(10))
@given(st.integers(2, 12), st.integers(1, 7))
def test_looking_later_leaves_the_weights_before_the_bad_batch(bad: int, interval: int) -> None:
    _, at_once, expected = run_spoiled(bad, LossGuard())
    trainer, later, said = run_spoiled(bad, LossGuard(interval, at_once=False))
    assert said == expected
    assert f"epoch {(bad + 5) // 6}, batch {(bad - 1) % 6 + 1} of 6" in said
    # Found when the interval is over, at the latest at the end of the epoch.
    assert bad <= trainer.state.iteration < bad + interval
    assert trainer.state.iteration <= (bad + 5) // 6 * 6
    assert len(at_once) == bad  # behind the batches before, and at the end
    for name, value in at_once[-1].items():
        assert torch.equal(value, at_once[-2][name]), name
        assert torch.equal(value, later[-1][name]), name


def test_an_optimizer_that_cannot_skip_steps_is_stopped_all_the_same() -> None:
    trainer, _, said = run_spoiled(2, LossGuard(3, at_once=False), fused=False)
    assert "epoch 1, batch 2 of 6" in said
    assert trainer.state.iteration == 3


def test_nothing_is_kept_before_a_waiting_batch_was_looked_at() -> None:
    guard, engine = LossGuard(10, at_once=False), engine_at(1)
    guard.check(terms(student_0_task=1.0, loss=1.0), engine)
    guard.settle(engine)
    guard.check(terms(student_0_task=NAN, loss=NAN), engine_at(2))
    with pytest.raises(FloatingPointError, match="batch 2 of 5"):
        guard.settle(engine_at(3))
    guard.settle(engine)
