import copy
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from torch import nn

from kdml_med.data import RandStainJitterd, SampleLoader, TileDataset
from kdml_med.engines import KDMLTrainer
from kdml_med.engines.trainer import first_samples
from kdml_med.handlers import UpdateSchedule
from kdml_med.losses import ClassificationCohortLoss, DetectionCohortLoss
from kdml_med.networks import Cohort, build_cohort
from kdml_med.networks.answers import ClassifierAnswer
from tests.data.folders import write_dataset
from tests.networks.tiny import PLAIN, STEADY_DETECTOR, TINY

MOBILE = {"name": "mobilenet_v2", "last_block": 2}


def batches(count, size=4, classes=2):
    generator = torch.Generator().manual_seed(11)
    return [
        {
            "image": torch.randn(size, 3, 32, 32, generator=generator),
            "label": torch.randint(0, classes, (size,), generator=generator),
        }
        for _ in range(count)
    ]


def trainer_of(cohort, data, loss, *, epochs=1, optimizer=None, **kwargs):
    return KDMLTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=data,
        network=cohort,
        optimizer=optimizer or torch.optim.AdamW(cohort.parameter_groups(), lr=1e-2),
        loss_function=loss,
        **kwargs,
    )


def equal_states(network, other):
    state, others = network.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(state[name], others[name]) for name in state)


@pytest.mark.parametrize("use_teacher", [False, True])
def test_independent_students_train_bit_for_bit_as_if_alone(use_teacher):
    def build():
        return build_cohort(seed=3, teacher=TINY, students=[MOBILE, TINY, MOBILE], use_teacher=use_teacher)

    cohort, data = build(), batches(3)
    trainer_of(cohort, data, ClassificationCohortLoss(beta=0.0, gamma=0.0), epochs=2).run()
    for name in cohort.names:
        alone = Cohort({"student_0": build().networks[name]})
        start = copy.deepcopy(alone.networks["student_0"])
        trainer_of(alone, data, ClassificationCohortLoss(beta=0.0, gamma=0.0), epochs=2).run()
        assert equal_states(cohort.networks[name], alone.networks["student_0"]), name
        assert not equal_states(start, alone.networks["student_0"])


def test_peers_change_what_students_learn():
    def trained(gamma):
        cohort = build_cohort(seed=3, students=[TINY, TINY], use_teacher=False)
        trainer_of(cohort, batches(2), ClassificationCohortLoss(beta=0.0, gamma=gamma)).run()
        return cohort.networks["student_0"]

    assert equal_states(trained(0.0), trained(0.0))
    assert not equal_states(trained(0.0), trained(1.0))


def test_teacher_trains_the_same_whatever_the_students_do():
    def trained(students, **weights):
        cohort = build_cohort(seed=3, teacher=MOBILE, students=students)
        trainer_of(cohort, batches(3), ClassificationCohortLoss(**weights)).run()
        return cohort.networks["teacher"]

    assert equal_states(trained([TINY]), trained([MOBILE, TINY], beta=7.0, gamma=3.0, temperature=2.0))


def test_everyone_learns_to_tell_bright_from_dark():
    (batch,) = batches(1, size=16)
    batch["image"] += 4.0 * batch["label"].view(-1, 1, 1, 1)
    cohort = build_cohort(teacher=PLAIN, students=[PLAIN, PLAIN])
    optimizer = torch.optim.Adam(cohort.parameter_groups(), lr=0.1)
    trainer_of(cohort, [batch], ClassificationCohortLoss(), epochs=30, optimizer=optimizer).run()
    for name, logits in cohort(batch["image"]).items():
        assert torch.equal(logits.argmax(dim=1), batch["label"]), name


def test_loss_terms_are_in_the_output_and_detached():
    cohort = build_cohort(teacher=TINY, students=[TINY, TINY])
    trainer = trainer_of(cohort, batches(2), ClassificationCohortLoss())
    trainer.run()
    terms = trainer.state.output["loss_terms"]
    kinds = {f"student_{index}_{kind}" for index in range(2) for kind in ("task", "kd", "ml")}
    assert set(terms) == {"teacher_task", "loss"} | kinds
    assert not any(value.requires_grad for value in terms.values())
    assert terms["loss"].item() == trainer.state.output["loss"].item()
    assert terms["loss"].item() == pytest.approx(sum(value.item() for name, value in terms.items() if name != "loss"))
    assert set(trainer.state.output["pred"]) == {"teacher", "student_0", "student_1"}


def test_the_loss_hears_of_every_epoch_before_its_first_batch():
    seen = []

    class Listening(ClassificationCohortLoss):
        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            seen.append(f"epoch {epoch}")

        def forward(self, predictions, target):
            seen.append(self.weights()["gamma"])
            return super().forward(predictions, target)

    cohort = build_cohort(students=[TINY, TINY], use_teacher=False)
    trainer_of(cohort, batches(2), Listening(beta=0.0, gamma=1.0, ramp_up_epochs=1), epochs=2).run()
    assert seen == ["epoch 1", 0.5, 0.5, "epoch 2", 1.0, 1.0]


def test_any_callable_that_gives_named_terms_can_be_the_loss():
    def squares(predictions, _target):
        terms = {name: value.square().mean() for name, value in predictions.items()}
        return terms | {"loss": sum(terms.values())}

    trainer = trainer_of(build_cohort(students=[TINY], use_teacher=False), batches(2), squares, epochs=2)
    trainer.run()
    assert set(trainer.state.output["loss_terms"]) == {"student_0", "loss"}


def test_training_stops_at_the_first_term_that_is_no_number_and_names_the_network():
    cohort, data = build_cohort(teacher=TINY, students=[TINY, TINY]), batches(3)
    broken = cohort.networks["student_1"]

    def spoil(module, inputs, output):
        return output * float("nan") if trainer.state.iteration == 2 else output

    broken.register_forward_hook(spoil)
    trainer = trainer_of(cohort, data, ClassificationCohortLoss(gamma=0.0))
    weights = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: weights.append(copy.deepcopy(cohort.state_dict())))
    expected = (
        r"^the loss of student_1 is no number in epoch 1, batch 2 of 3 \(student_1_task nan, student_1_kd nan\)\. Start"
    )
    with pytest.raises(FloatingPointError, match=expected):
        trainer.run()
    assert len(weights) == 1
    for name, parameter in cohort.named_parameters():
        assert torch.equal(parameter, weights[0][name]), name


@pytest.mark.parametrize("steps", [2, 3])
def test_accumulated_batches_make_the_step_of_one_bigger_batch(steps):
    small = batches(steps, size=4)
    big = [{key: torch.cat([batch[key] for batch in small]) for key in ("image", "label")}]

    def trained(data, **kwargs):
        cohort = build_cohort(seed=1, teacher=PLAIN, students=[PLAIN, PLAIN])
        optimizer = torch.optim.SGD(cohort.parameter_groups(), lr=0.5)
        trainer_of(cohort, data, ClassificationCohortLoss(), optimizer=optimizer, **kwargs).run()
        return cohort.state_dict()

    accumulated, whole = trained(small, accumulate=steps), trained(big)
    start = build_cohort(seed=1, teacher=PLAIN, students=[PLAIN, PLAIN]).state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-6)
        assert (value - start[name]).abs().max() > 1e-4, name


def frames(count, *, boxed, seed):
    """A batch of frames of 64 px, of which the first ``boxed`` have a box."""
    generator = torch.Generator().manual_seed(seed)
    corners = [torch.rand(int(number < boxed), 2, generator=generator) * 30 for number in range(count)]
    boxes = [torch.cat([low, low + 16 + 16 * torch.rand(low.shape, generator=generator)], dim=1) for low in corners]
    return {"image": torch.randn(count, 3, 64, 64, generator=generator), "label": boxes}


@pytest.mark.parametrize(
    ("weights", "near"),
    [
        ({"beta": 0.0, "gamma": 0.0}, 1e-5),
        ({"teacher_link": "features", "peer_link": "features"}, 1e-5),
        ({}, 1e-2),  # what scores of background teach is divided by what it seems to weigh in the other batches
    ],
    ids=str,
)
def test_frames_with_and_without_polyps_make_the_step_of_one_batch_wherever_they_come(weights, near):
    small = [frames(3, boxed=0, seed=1), frames(3, boxed=2, seed=2), frames(3, boxed=0, seed=3)]
    whole = {"image": torch.cat([batch["image"] for batch in small])}
    whole["label"] = [boxes for batch in small for boxes in batch["label"]]

    def steps(data, **kwargs):
        cohort = build_cohort(
            seed=1, task="detection", num_classes=1, teacher=STEADY_DETECTOR, students=[STEADY_DETECTOR] * 2
        )
        start = {name: value.clone() for name, value in cohort.state_dict().items()}
        optimizer = torch.optim.SGD(cohort.parameter_groups(), lr=0.5)
        trainer_of(cohort, data, DetectionCohortLoss(**weights), optimizer=optimizer, **kwargs).run()
        moved = {name: value - start[name] for name, value in cohort.state_dict().items()}
        return [
            torch.cat([v.flatten() for k, v in moved.items() if k.startswith(f"networks.{n}")]) for n in cohort.names
        ]

    for found, wanted in zip(steps(small, accumulate=3), steps([whole]), strict=True):
        assert wanted.norm() > 0.1
        assert (found - wanted).norm() < near * wanted.norm()


def test_classes_weigh_in_accumulated_batches_as_in_one():
    """Even if each batch has a single class, of which a mean by itself would not know the weight."""
    (whole,) = batches(1, size=8)
    whole["label"] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    small = [{key: value[part] for key, value in whole.items()} for part in (slice(4), slice(4, 8))]

    def trained(data, **kwargs):
        cohort = build_cohort(seed=1, teacher=PLAIN, students=[PLAIN, PLAIN])
        optimizer = torch.optim.SGD(cohort.parameter_groups(), lr=0.5)
        loss = ClassificationCohortLoss(class_weights=[1.0, 9.0])
        trainer_of(cohort, data, loss, optimizer=optimizer, **kwargs).run()
        return cohort.state_dict()

    accumulated, wanted = trained(small, accumulate=2), trained([whole])
    for name, value in wanted.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-6)


def test_the_last_update_of_an_epoch_is_the_mean_of_the_batches_that_are_left():
    small = batches(5, size=4)
    joined = [
        {key: torch.cat([batch[key] for batch in part]) for key in ("image", "label")}
        for part in (small[:2], small[2:4], small[4:])
    ]

    def trained(data, **kwargs):
        cohort = build_cohort(seed=1, teacher=PLAIN, students=[PLAIN, PLAIN])
        optimizer = torch.optim.SGD(cohort.parameter_groups(), lr=0.5)
        trainer_of(cohort, data, ClassificationCohortLoss(), optimizer=optimizer, epochs=2, **kwargs).run()
        return cohort.state_dict()

    accumulated, whole = trained(small, accumulate=2), trained(joined)
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-5, atol=1e-6)


def test_the_schedule_counts_updates():
    cohort = build_cohort(students=[TINY], use_teacher=False)
    optimizer = torch.optim.SGD(cohort.parameter_groups(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    rates, updated = [], []
    trainer = trainer_of(
        cohort, batches(5), ClassificationCohortLoss(beta=0.0), optimizer=optimizer, epochs=2, accumulate=2,
        train_handlers=[UpdateSchedule(schedule)],
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: updated.append(trainer.updated))
    trainer.run()
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.03125]
    assert updated == [False, True, False, True, True] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tiles_come_shuffled_and_augmented_anew_in_every_epoch(tmp_path, num_workers):
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 3), "b": ("train", "MSI", 3)}, size_px=8)
    dataset = TileDataset(folder, "train", transform=RandStainJitterd("image"), seed=5)
    loader = SampleLoader(dataset, batch_size=2, training=True, seed=5, num_workers=num_workers)
    trainer = trainer_of(
        build_cohort(students=[TINY], use_teacher=False), loader, ClassificationCohortLoss(beta=0.0), epochs=2
    )
    seen = SimpleNamespace(names=[], images=[])

    def remember():
        seen.names += [(trainer.state.epoch, name) for name in trainer.state.batch["sample_id"]]
        seen.images += list(trainer.state.output["image"])

    trainer.add_event_handler(Events.ITERATION_COMPLETED, remember)
    trainer.run()
    names = list(dataset.rows["sample_id"])
    assert sorted(seen.names) == sorted((epoch, name) for epoch in (1, 2) for name in names)
    # Each tile looks as it must in the epoch that the engine counts, workers or not.
    for (epoch, name), image in zip(seen.names, seen.images, strict=True):
        assert torch.equal(image, dataset[epoch, names.index(name)]["image"])
    assert [name for _, name in seen.names[:6]] != [name for _, name in seen.names[6:]]


def test_samples_of_an_update_weigh_alike_in_batches_of_any_size(tmp_path):
    """Batches of 4, 4 and 2 tiles that make one update are one batch of 10."""
    folder = write_dataset(tmp_path, {"a": ("train", "MSS", 6), "b": ("train", "MSI", 4)}, size_px=8)

    def trained(batch_size, accumulate):
        loader = SampleLoader(TileDataset(folder, "train", seed=5), batch_size=batch_size, training=True, seed=5)
        cohort = build_cohort(seed=3, students=[PLAIN], use_teacher=False)
        optimizer = torch.optim.SGD(cohort.parameters(), lr=0.1)
        loss = ClassificationCohortLoss(beta=0.0)
        trainer_of(cohort, loader, loss, epochs=2, optimizer=optimizer, accumulate=accumulate).run()
        return cohort.state_dict()

    found, wanted = trained(4, 3), trained(10, 1)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


class WithSpare(list):
    """Batches, the last of which has samples that do not count."""

    def __init__(self, values, spare):
        super().__init__(values)
        self.sampler = SimpleNamespace(spare=spare)


@pytest.mark.parametrize(("spare", "counted"), [(0, 4), (1, 3), (4, 4)])
def test_spare_samples_of_the_last_batch_count_nowhere(spare, counted):
    """Where none counts, their terms are there and the others make them count nothing."""
    asked = []

    def loss(predictions, target):
        asked.append((predictions["student_0"].logits, predictions["student_0"].features, target))
        return {"loss": predictions["student_0"].logits.sum()}

    class Answering(nn.Linear):
        def forward(self, image):
            answer = super().forward(image[..., 0, 0])
            return {"student_0": ClassifierAnswer(answer, (image, image))}

    network = Answering(3, 2)
    data = WithSpare(batches(2), spare)
    trainer_of(network, data, loss, optimizer=torch.optim.SGD(network.parameters(), lr=0.0)).run()
    for (logits, features, target), batch, size in zip(asked, data, [4, counted], strict=True):
        assert torch.equal(target, batch["label"][:size])
        assert torch.equal(logits, network(batch["image"])["student_0"].logits[:size])
        assert all(torch.equal(one, batch["image"][:size]) for one in features)
    boxes = [torch.ones(number, 4) for number in range(3)]
    cut, size = first_samples((boxes, (64, 96)), 2)
    assert (len(cut), size) == (2, (64, 96))
