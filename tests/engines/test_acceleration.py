"""Training in fewer bits, another order of memory, and with activations computed again."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdml_med.engines import Acceleration, KDMLTrainer
from kdml_med.errors import InputError
from kdml_med.losses import ClassificationCohortLoss, DetectionCohortLoss
from kdml_med.networks import Cohort, build_cohort
from tests.networks.tiny import STAGED, TINY

MOBILE = {"name": "mobilenet_v2", "last_block": 4}
LITE = {"name": "efficientnet_lite0", "last_block": 4}
RESNET = {"name": "resnet10", "widen_factor": 0.1}
DETECTOR = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
PIXELS = 32


def batches(count: int = 2, *, detection: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(5)
    boxes = [torch.tensor([[4.0, 4.0, 28.0, 28.0]]), torch.zeros(0, 4)]
    return [
        {
            "image": torch.randn(2 if detection else 6, 3, *[64 if detection else PIXELS] * 2, generator=generator),
            "label": boxes if detection else torch.randint(0, 2, (6,), generator=generator),
        }
        for _ in range(count)
    ]


def trained(cohort: Cohort, acceleration: Acceleration | None, *, detection: bool = False, epochs: int = 1) -> Cohort:
    loss = (DetectionCohortLoss if detection else ClassificationCohortLoss)(beta=float(cohort.has_teacher))
    KDMLTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches(detection=detection),
        network=cohort,
        optimizer=torch.optim.AdamW(cohort.parameter_groups(), lr=1e-3, fused=True),
        loss_function=loss,
        acceleration=acceleration,
    ).run()
    return cohort


def weights_of(network: nn.Module) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in network.state_dict().values())


def types_seen(network: nn.Module, kind: type[nn.Module]) -> list[torch.dtype]:
    """Types of what the layers of a kind give, filled while it runs."""
    seen: list[torch.dtype] = []
    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    return seen


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_convolutions_are_computed_in_the_precision_that_is_asked_for(precision: Any, dtype: torch.dtype) -> None:
    cohort = build_cohort(teacher=TINY, students=[TINY])
    seen = types_seen(cohort, nn.Conv2d)
    trained(cohort, Acceleration(precision=precision))
    assert seen == [dtype] * (2 * 2)


def test_some_networks_stay_in_float32_beside_others() -> None:
    cohort = build_cohort(teacher=TINY, students=[TINY, TINY])
    seen = {name: types_seen(network, nn.Conv2d) for name, network in cohort.networks.items()}
    trained(cohort, Acceleration(precision="bf16", in_float32=["student_0"]))
    assert {name: set(types) for name, types in seen.items()} == {
        "teacher": {torch.bfloat16}, "student_0": {torch.float32}, "student_1": {torch.bfloat16},
    }  # fmt: skip


def test_losses_weights_and_what_is_evaluated_stay_float32() -> None:
    cohort = build_cohort(teacher=TINY, students=[TINY])
    terms: dict[str, Tensor] = {}

    class Listening(ClassificationCohortLoss):
        def forward(self, predictions: Any, target: Any) -> dict[str, Tensor]:
            assert not torch.is_autocast_enabled("cpu")
            terms.update(super().forward(predictions, target))
            return terms

    optimizer = torch.optim.AdamW(cohort.parameter_groups(), fused=True)
    KDMLTrainer(
        device="cpu", max_epochs=1, train_data_loader=batches(), network=cohort, optimizer=optimizer,
        loss_function=Listening(), acceleration=Acceleration(precision="bf16"),
    ).run()  # fmt: skip
    assert {value.dtype for value in terms.values()} == {torch.float32}
    state = [value for values in optimizer.state.values() for value in values.values()]
    assert {value.dtype for value in [*cohort.parameters(), *state]} == {torch.float32}
    cohort.eval()
    assert {logits.dtype for logits in cohort(batches()[0]["image"]).values()} == {torch.float32}


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"precision": "bf16", "in_float32": ["teacher"]}])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_the_same_training_gives_the_same_bits_in_every_precision(settings: Any, memory_format: Any) -> None:
    def result() -> bytes:
        acceleration = Acceleration(memory_format=memory_format, **settings)
        return weights_of(trained(build_cohort(seed=2, teacher=RESNET, students=[MOBILE]), acceleration))

    assert result() == result()


def test_a_student_is_computed_alike_alone_and_in_a_cohort() -> None:
    names = ["teacher", "student_0", "student_1"]
    settings: Any = {"precision": "bf16", "memory_format": "channels_last"}
    loss = ClassificationCohortLoss(beta=0.0, gamma=0.0)

    def run(cohort: Cohort, in_float32: list[str]) -> Cohort:
        KDMLTrainer(
            device="cpu", max_epochs=1, train_data_loader=batches(), network=cohort, loss_function=loss,
            optimizer=torch.optim.AdamW(cohort.parameter_groups(), lr=1e-3, fused=True),
            acceleration=Acceleration(in_float32=in_float32, **settings),
        ).run()  # fmt: skip
        return cohort

    def build() -> Cohort:
        return build_cohort(seed=3, teacher=RESNET, students=[RESNET, MOBILE])

    together = run(build(), ["student_1"])
    for name in names:
        alone = run(Cohort({"student_0": build().networks[name]}), ["student_0"] if name == "student_1" else [])
        assert weights_of(alone.networks["student_0"]) == weights_of(together.networks[name]), name


def close(one: nn.Module, other: nn.Module, *, steps: int, learning_rate: float = 1e-3) -> None:
    """Weights differ by no more than AdamW makes of gradients that differ in the last bits: steps in other directions
    where a gradient is nearly nothing, and the same elsewhere."""
    mine, others = one.state_dict(), other.state_dict()
    distances = torch.cat([(mine[name] - others[name]).abs().flatten() for name, _ in one.named_parameters()])
    assert distances.max() <= 2.5 * steps * learning_rate
    assert distances.median() < 0.02 * learning_rate


@pytest.mark.parametrize("detection", [False, True])
def test_the_order_of_memory_changes_nothing_but_rounding(detection: bool) -> None:
    networks: Any = {"task": "detection", "num_classes": 1} if detection else {}
    spec: Any = DETECTOR if detection else RESNET

    def run(memory_format: Any) -> Cohort:
        cohort = build_cohort(seed=1, teacher=spec, students=[spec], **networks)
        return trained(cohort, Acceleration(memory_format=memory_format), detection=detection)

    contiguous, last = run("contiguous"), run("channels_last")
    close(contiguous, last, steps=2)
    wide = [value for value in last.parameters() if value.ndim == 4 and min(value.shape) > 1]
    assert wide
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in wide)


def test_an_optimizer_that_was_made_before_goes_on_with_the_same_parameters() -> None:
    cohort = build_cohort(students=[RESNET], use_teacher=False)
    before = list(cohort.parameters())
    values = [value.detach().clone() for value in before]
    prepared = Acceleration(precision="bf16", memory_format="channels_last", checkpoint_activations="all").prepare(
        cohort
    )
    assert prepared is cohort
    assert all(one is other for one, other in zip(before, prepared.parameters(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, values, strict=True))


def test_images_come_in_the_order_of_the_networks() -> None:
    image = torch.randn(2, 3, 8, 8)
    assert Acceleration().image(image) is image
    turned = Acceleration(memory_format="channels_last").image(image)
    assert torch.equal(turned, image)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    views = torch.randn(2, 3, 3, 8, 8)
    turned = Acceleration(memory_format="channels_last").image(views)
    assert torch.equal(turned, views)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in turned.unbind(1))


def calls_of(part: nn.Module) -> list[bool]:
    """One entry for each time that a part runs, filled while it does."""
    calls: list[bool] = []
    part.register_forward_hook(lambda *_: calls.append(True))
    return calls


INNER: dict[str, Callable[[Any], nn.Module]] = {
    "resnet10": lambda network: network.layer2[0].conv1,
    "mobilenet_v2": lambda network: network.features[2].conv[0],
    "efficientnet_lite0": lambda network: network.blocks()[2]._expand_conv,
    "retinanet": lambda network: network.body.features[2].conv[0],
    STAGED: lambda network: network.body[2],
}


@pytest.mark.parametrize(
    ("spec", "precision"),
    [(RESNET, "fp32"), (RESNET, "bf16"), (MOBILE, "bf16"), (LITE, "fp32"), (DETECTOR, "fp32"), (STAGED, "fp32")],
    ids=str,
)
def test_activations_that_are_computed_again_give_the_same_bits(spec: Any, precision: Any) -> None:
    name = spec if isinstance(spec, str) else spec["name"]
    detection = name == "retinanet"

    def run(recomputed: Any) -> tuple[bytes, int]:
        task: Any = {"task": "detection", "num_classes": 1} if detection else {}
        cohort = build_cohort(seed=4, teacher=spec, students=[spec], **task)
        calls = calls_of(INNER[name](cohort.networks["teacher"]))
        acceleration = Acceleration(precision=precision, checkpoint_activations=recomputed)
        return weights_of(trained(cohort, acceleration, detection=detection)), len(calls)

    kept, once = run("none")
    again, twice = run("teacher")
    assert again == kept
    # The hook of a part that is a block itself runs when it is called, not when it is computed again.
    assert (once, twice) == (2, 2 if name == STAGED else 4)


def test_only_who_learns_computes_again_and_not_in_evaluation() -> None:
    cohort = build_cohort(seed=4, teacher=RESNET, students=[RESNET])
    teacher, student = (calls_of(INNER["resnet10"](cohort.networks[name])) for name in ("teacher", "student_0"))
    trained(cohort, Acceleration(checkpoint_activations="teacher"))
    assert (len(teacher), len(student)) == (4, 2)
    with torch.no_grad():
        cohort.eval()(batches()[0]["image"])
    assert (len(teacher), len(student)) == (5, 3)


def test_recomputing_networks_can_be_copied() -> None:
    cohort = Acceleration(checkpoint_activations="all").prepare(build_cohort(students=[RESNET], use_teacher=False))
    other = copy.deepcopy(cohort)
    image = batches()[0]["image"]
    before = weights_of(cohort)
    other(image)["student_0"].sum().backward()
    assert weights_of(cohort) == before, "the copy has its own batch statistics"
    assert all(value.grad is None for value in cohort.parameters())
    assert all(value.grad is not None for value in other.parameters())


def test_a_network_without_known_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="a TinyNet does not say where its blocks are"):
        Acceleration(checkpoint_activations="all").prepare(build_cohort(students=[TINY], use_teacher=False))
    Acceleration(checkpoint_activations="teacher").prepare(build_cohort(students=[TINY], use_teacher=False))


@pytest.mark.parametrize("name", ["precision", "memory_format", "checkpoint_activations"])
def test_unknown_words_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'fast'"):
        Acceleration(**{name: "fast"})  # type: ignore[arg-type]


def test_gradients_of_float16_are_scaled() -> None:
    assert Acceleration(precision="bf16").scaler is None
    with (
        pytest.warns(UserWarning, match="CUDA is not available")
        if not torch.cuda.is_available()
        else contextlib.nullcontext()
    ):
        acceleration = Acceleration("cuda", precision="fp16")
    assert isinstance(acceleration.scaler, torch.amp.GradScaler)


def test_what_is_described_makes_the_same_again() -> None:
    first = Acceleration(precision="bf16", in_float32=["student_1", "student_0"], memory_format="channels_last")
    assert first.describe() == {
        "precision": "bf16", "in_float32": ["student_0", "student_1"], "memory_format": "channels_last",
        "compile": False,
    }  # fmt: skip
    assert Acceleration(**first.describe()).describe() == first.describe()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_train_alike_whatever_size_of_batch_they_meet_first() -> None:
    def run(sizes: list[int], **settings: Any) -> tuple[Cohort, Tensor]:
        cohort = build_cohort(seed=1, students=[TINY], use_teacher=False)
        data = [{name: value[:size] for name, value in batches(1)[0].items()} for size in sizes]
        trainer = KDMLTrainer(
            device="cpu", max_epochs=1, train_data_loader=data, network=cohort,
            loss_function=ClassificationCohortLoss(beta=0.0, gamma=0.0),
            optimizer=torch.optim.SGD(cohort.parameter_groups(), lr=0.0), acceleration=Acceleration(**settings),
        )  # fmt: skip
        trainer.run()
        return cohort, trainer.state.output["loss_terms"]["loss"]

    plain, expected = run([6, 5])
    compiled, loss = run([6, 5], compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(loss, expected)
    torch._dynamo.reset()
    # As a training that goes on with the last, smaller batch of an epoch.
    assert torch.equal(run([5], compile=True)[1], run([6, 5], compile=True)[1])
