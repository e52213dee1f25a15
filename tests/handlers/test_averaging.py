"""Averaged weights against their definition, worked out by hand from the weights that the training passed through."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from kdml_med.data import RandStainJitterd, SampleLoader, TileDataset
from kdml_med.handlers import CohortCheckpoint, WeightAverage
from kdml_med.handlers.averaging import measure_statistics
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import Cohort, build_cohort
from kdml_med.networks.answers import common_answer
from kdml_med.networks.registry import NetworkSpec
from kdml_med.networks.stages import answer_with_features
from kdml_med.runs import checkpoint_path
from tests.data.folders import write_dataset
from tests.engines.test_trainer import batches, equal_states, trainer_of
from tests.kills import Killed, train_until
from tests.networks.tiny import DROPPING, PLAIN, STAGED, TINY

State = dict[str, Tensor]


def states_of(cohort: Cohort) -> State:
    return copy.deepcopy(cohort.state_dict())


def train(
    kind: Any,
    *,
    epochs: int,
    data: list[Any] | None = None,
    teacher_frozen: bool = False,
    network: Any = TINY,
    **kwargs: Any,
) -> tuple[WeightAverage, list[State], list[State]]:
    """The average, the weights after every batch, and those of the average at the end of every epoch."""
    torch.manual_seed(1)
    cohort = build_cohort(seed=3, teacher=network, students=[network, network])
    if teacher_frozen:
        cohort = Cohort(dict(cohort.networks), frozen_teacher=True)
    names = ("decay", "start")
    average = WeightAverage(cohort, kind, **{name: kwargs.pop(name) for name in names if name in kwargs})
    loss = ClassificationCohortLoss(train_teacher=not teacher_frozen)
    trainer = trainer_of(cohort, data or batches(3), loss, epochs=epochs, train_handlers=[average], **kwargs)
    passed: list[State] = []
    ends: list[State] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: passed.append(states_of(cohort)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: ends.append(states_of(average.network)))
    trainer.run()
    return average, passed, ends


def assert_close(found: State, expected: State, names: list[str]) -> None:
    for name in names:
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=1e-5, atol=1e-6, msg=name)


def floats(state: State) -> list[str]:
    return [name for name, value in state.items() if value.is_floating_point()]


def is_statistic(name: str) -> bool:
    return "running_" in name


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_exponential_average_of_weights_and_statistics_follows_its_formula(decay: float) -> None:
    average, passed, _ = train("ema", epochs=4, decay=decay)
    names = floats(passed[0])
    assert any(map(is_statistic, names))
    expected = {name: passed[0][name].double() for name in names}
    for number, state in enumerate(passed[1:], start=1):
        kept = min(decay, (1 + number) / (10 + number))
        expected = {name: kept * value + (1 - kept) * state[name].double() for name, value in expected.items()}
    assert_close(average.network.state_dict(), expected, names)
    assert not equal_states(average.network, average.trained)


def test_counters_of_batches_are_those_of_the_training() -> None:
    average, passed, _ = train("ema", epochs=2)
    counters = [name for name in passed[-1] if name not in floats(passed[-1])]
    assert counters
    assert all(torch.equal(average.network.state_dict()[name], passed[-1][name]) for name in counters)


def test_an_average_that_keeps_nothing_is_the_last_weights() -> None:
    average, _, _ = train("ema", epochs=2, decay=0.0)
    assert equal_states(average.network, average.trained)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_training_is_the_same_to_the_bit_with_an_average(kind: str) -> None:
    plain, _, _ = train("none", epochs=4, network=DROPPING)
    assert plain.network is plain.trained
    average, _, _ = train(kind, epochs=4, start=0.25, network=DROPPING)
    assert equal_states(average.trained, plain.trained)
    assert not equal_states(average.network, plain.trained)


def test_the_average_moves_with_steps_of_the_optimizer_and_not_with_batches() -> None:
    average, _, _ = train("ema", epochs=1, data=batches(5), accumulate=2)
    assert int(average.averaged.n_averaged) == 3  # two, two, and what is left


def test_plain_average_begins_at_its_share_of_the_epochs_and_takes_ends_of_epochs() -> None:
    data = batches(3)
    average, passed, ends = train("swa", epochs=6, data=data, start=0.5)
    finished = passed[2::3]
    for epoch in range(3):
        assert all(torch.equal(ends[epoch][name], finished[epoch][name]) for name in ends[epoch]), epoch
    weights = [name for name in floats(passed[0]) if not is_statistic(name)]
    expected = {name: sum(state[name].double() for state in finished[2:]) / 4 for name in weights}
    assert_close(average.network.state_dict(), expected, weights)
    # Statistics as PyTorch's own function measures them, on the same images.
    judge = copy.deepcopy(average.network)
    update_bn([batch["image"] for batch in data], judge)
    assert_close(average.network.state_dict(), judge.state_dict(), floats(judge.state_dict()))
    assert any(
        not torch.allclose(average.network.state_dict()[name], finished[-1][name])
        for name in filter(is_statistic, passed[0])
    )


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        (4, 6, [5, 6]),  # 2 to 4 were in it, and of six epochs it begins at 3
        (4, 12, [6, 7, 8, 9, 10, 11, 12]),
        (4, 5, [2, 3, 4, 5]),  # still at 2
        (5, 5, [2, 3, 4, 5]),
    ],
)
def test_a_mean_that_has_too_early_epochs_begins_anew_when_epochs_are_added(
    before: int, after: int, taken: list[int]
) -> None:
    cohort, data = build_cohort(seed=3, teacher=TINY, students=[TINY, TINY]), batches(2)
    average = WeightAverage(cohort, "swa", start=0.5)
    finished: list[State] = []
    for begin, epochs in ((0, before), (before, after)):
        trainer = trainer_of(cohort, data, ClassificationCohortLoss(), epochs=epochs, train_handlers=[average])

        def start(trainer: Any = trainer, begin: int = begin) -> None:
            trainer.state.epoch, trainer.state.iteration = begin, 2 * begin

        trainer.add_event_handler(Events.STARTED, start)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: finished.append(states_of(cohort)))
        if begin < epochs:
            trainer.run()
    weights = [name for name in floats(finished[0]) if not is_statistic(name)]
    expected = {name: sum(finished[epoch - 1][name].double() for epoch in taken) / len(taken) for name in weights}
    assert_close(average.network.state_dict(), expected, weights)


def test_nothing_is_averaged_before_two_ends_of_epochs() -> None:
    average, _, _ = train("swa", epochs=2, start=1.0)
    assert equal_states(average.network, average.trained)


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("teacher_frozen", [False, True])
def test_the_average_is_always_ready_to_be_evaluated(kind: str, teacher_frozen: bool) -> None:
    average, _, _ = train(kind, epochs=2, start=0.0, teacher_frozen=teacher_frozen)
    assert not any(module.training for module in average.network.modules())
    assert average.trained.networks["student_0"].training


def test_a_frozen_teacher_is_shared_and_students_are_averaged() -> None:
    average, _, _ = train("ema", epochs=2, teacher_frozen=True)
    teacher = average.trained.networks["teacher"]
    assert average.network.networks["teacher"] is teacher
    assert average.network.names == average.trained.names
    average.network.train()
    assert not teacher.training
    assert not any(name.startswith("module.networks.teacher") for name in average.state_dict())
    assert not equal_states(average.network.networks["student_0"], average.trained.networks["student_0"])


@pytest.mark.parametrize(("kind", "start"), [("ema", 0.75), ("swa", 0.25)])
def test_an_average_goes_on_from_its_state(kind: Any, start: float) -> None:
    whole, _, _ = train(kind, epochs=4, start=start)
    taken = WeightAverage(build_cohort(seed=8, teacher=TINY, students=[TINY, TINY]), kind)
    assert not equal_states(taken.network, whole.network)
    taken.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert equal_states(taken.network, whole.network)
    assert int(taken.averaged.n_averaged) == int(whole.averaged.n_averaged)
    other = WeightAverage(build_cohort(teacher=PLAIN, students=[TINY, TINY]), kind)
    with pytest.raises(RuntimeError, match="Error"):
        other.load_state_dict(whole.state_dict())


def test_without_an_average_there_is_no_state() -> None:
    cohort = build_cohort(students=[TINY], use_teacher=False)
    average = WeightAverage(cohort)
    assert average.state_dict() == {}
    average.load_state_dict({})
    with pytest.raises(ValueError, match="kind must be one of none, ema, swa, got 'mean'"):
        WeightAverage(cohort, "mean")  # type: ignore[arg-type]


class Frozen(nn.Sequential):
    """A layer whose first part stays in evaluation mode."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[0].eval()
        return self


def test_statistics_are_plain_means_over_batches_and_frozen_layers_keep_theirs() -> None:
    network = Frozen(nn.BatchNorm2d(1, eps=0.0), nn.BatchNorm2d(1, momentum=0.5))
    network[0].running_mean.fill_(1.0)
    network[0].running_var.fill_(4.0)
    # (x - 1) / 2 of 3, 3 and of 1, 5: means 1 and 1, unbiased variances 0 and 2.
    images = [torch.tensor([3.0, 3.0]).view(2, 1, 1, 1), torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)]
    measure_statistics(network, images)
    assert (network[0].running_mean.item(), network[0].running_var.item()) == (1.0, 4.0)
    assert network[1].running_mean.item() == pytest.approx(1.0)
    assert network[1].running_var.item() == pytest.approx(1.0)
    assert network[1].momentum == 0.5


def test_a_network_without_batch_norm_is_not_run() -> None:
    class Fails(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise AssertionError

    measure_statistics(Fails(), [torch.ones(1)])


PAIR = {"name": "committee", "members": [TINY, PLAIN]}


@pytest.mark.parametrize("teacher", [TINY, PAIR], ids=["one", "committee"])
def test_students_learn_from_the_average_of_their_teacher_which_learns_as_without(teacher: NetworkSpec) -> None:
    said: list[Tensor] = []
    wanted: list[Tensor] = []

    def taught(teaches: bool) -> Cohort:
        cohort = build_cohort(seed=3, teacher=teacher, students=[TINY, TINY])
        average = WeightAverage(cohort, "ema", decay=0.5, teaches=teaches)
        trainer = trainer_of(cohort, batches(4), ClassificationCohortLoss(), train_handlers=[average])

        def compare(engine: Any) -> None:
            said.append(common_answer(engine.state.output["pred"]["teacher"]))
            wanted.append(average.network.networks["teacher"](engine.state.output["image"]).detach())

        if teaches:
            trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, compare)
        trainer.run()
        return cohort

    first, other = taught(True), taught(False)
    assert len(said) == 4
    assert all(torch.equal(*pair) for pair in zip(said, wanted, strict=True))
    assert equal_states(first.networks["teacher"], other.networks["teacher"])
    assert not equal_states(first.networks["student_0"], other.networks["student_0"])
    assert first.state_dict().keys() == other.state_dict().keys()  # the average is no part of it


@pytest.mark.parametrize("kind", ["none", "swa"])
def test_nobody_but_an_exponential_average_teaches(kind: Any) -> None:
    cohort = build_cohort(teacher=TINY, students=[TINY])
    WeightAverage(cohort, kind, teaches=True)
    frozen = Cohort(dict(cohort.networks), frozen_teacher=True)
    WeightAverage(frozen, "ema", teaches=True)
    assert cohort.spokesman == frozen.spokesman == ()


def test_the_average_answers_to_every_view_with_feature_maps() -> None:
    cohort = build_cohort(teacher=STAGED, students=[STAGED, STAGED], features=True)
    average = WeightAverage(cohort, "ema", teaches=True)
    for parameter in average.network.networks["teacher"].parameters():
        parameter.data.add_(0.1)
    image = torch.rand(3, 2, 3, 16, 16)
    answer = cohort(image)["teacher"]
    for student in range(2):
        wanted = answer_with_features(average.network.networks["teacher"], image[:, student], cohort.feature_strides)
        said = common_answer(answer, student)
        assert torch.equal(said.logits, wanted.logits)
        assert all(torch.equal(*maps) for maps in zip(said.features, wanted.features, strict=True))
        assert not said.logits.requires_grad
    ClassificationCohortLoss(teacher_link="both")(cohort(image), torch.tensor([0, 1, 1]))["loss"].backward()
    assert all(parameter.grad is None for parameter in average.network.parameters())
    assert isinstance(cohort.eval()(image[:, 0])["teacher"], Tensor)


def saved(
    folder: Path, run_dir: Path, kind: Any, *, stop: int | None = None, seed: int = 3, teaches: bool = False
) -> WeightAverage:
    """Train four epochs of five batches, or go on; a checkpoint after every batch, killed behind iteration ``stop``."""
    cohort = build_cohort(seed=seed, teacher=TINY, students=[TINY, TINY])
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image"), seed=5)
    loader = SampleLoader(dataset, batch_size=2, training=True, seed=5)
    average = WeightAverage(cohort, kind, start=0.25, teaches=teaches)
    trainer = trainer_of(cohort, loader, ClassificationCohortLoss(), epochs=4, train_handlers=[average])
    CohortCheckpoint(
        run_dir, cohort, trainer.optimizer, interval=1, extras={"average": average}, kept=average.network
    ).attach(trainer)

    train_until(trainer, stop)
    return average


@pytest.mark.parametrize(("kind", "teaches"), [("ema", False), ("ema", True), ("swa", False)])
def test_a_training_killed_within_an_epoch_goes_on_with_its_average_to_the_bit(
    kind: str, teaches: bool, tmp_path: Path
) -> None:
    folder = write_dataset(tmp_path / "tiles", {"a": ("train", "MSS", 6), "b": ("train", "MSI", 4)})
    whole = saved(folder, tmp_path / "whole", kind, teaches=teaches)
    for stop in (3, 12, 18):
        with pytest.raises(Killed):
            saved(folder, tmp_path / "killed", kind, stop=stop, seed=3 if stop == 3 else 4, teaches=teaches)
    again = saved(folder, tmp_path / "killed", kind, seed=4, teaches=teaches)
    assert equal_states(again.network, whole.network)
    assert equal_states(again.trained, whole.trained)
    for name in ("last", "best", "teacher", "student_0", "student_1"):
        files = [checkpoint_path(tmp_path / run, name).read_bytes() for run in ("whole", "killed")]
        assert files[0] == files[1], name
    kept = torch.load(checkpoint_path(tmp_path / "whole", "student_0"), weights_only=True)
    assert all(
        torch.equal(value, kept[name]) for name, value in whole.network.networks["student_0"].state_dict().items()
    )
    assert not all(
        torch.equal(value, kept[name]) for name, value in whole.trained.networks["student_0"].state_dict().items()
    )
