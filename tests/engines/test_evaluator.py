import contextlib
import math

import pytest
import torch

from kdml_med.engines import ClassificationEvaluator, ensemble_probabilities
from kdml_med.errors import InputError
from kdml_med.losses import ClassificationCohortLoss
from kdml_med.networks import build_cohort
from tests.engines.test_trainer import trainer_of
from tests.networks.tiny import TINY

# Two classes; logits (0, ln 3) mean probabilities (1/4, 3/4), equal logits (1/2, 1/2).
LN3 = math.log(3)
LOGITS = {
    "teacher": torch.tensor([[9.0, -9.0]]),
    "student_0": torch.tensor([[0.0, LN3]]),
    "student_1": torch.tensor([[0.0, 0.0]]),
}


def evaluate(cohort, **kwargs):
    generator = torch.Generator().manual_seed(0)
    data = [{"image": torch.randn(3, 3, 8, 8, generator=generator), "label": torch.tensor([0, 1, 1])}]
    evaluator = ClassificationEvaluator(device="cpu", val_data_loader=data, network=cohort, **kwargs)
    evaluator.run()
    return evaluator.state.output


def test_ensemble_is_the_mean_of_the_students_without_the_teacher():
    probabilities = ensemble_probabilities(LOGITS)
    assert list(probabilities) == ["teacher", "student_0", "student_1", "ensemble"]
    assert probabilities["student_0"].tolist() == [pytest.approx([1 / 4, 3 / 4])]
    # ((1/4 + 1/2) / 2, (3/4 + 1/2) / 2)
    assert probabilities["ensemble"].tolist() == [pytest.approx([3 / 8, 5 / 8])]


def test_logits_can_be_averaged_instead():
    # Mean logits (0, ln 3 / 2) mean odds of sqrt 3.
    probabilities = ensemble_probabilities(LOGITS, average="logits")
    odds = math.sqrt(3)
    assert probabilities["ensemble"].tolist() == [pytest.approx([1 / (1 + odds), odds / (1 + odds)])]
    assert torch.equal(probabilities["student_0"], ensemble_probabilities(LOGITS)["student_0"])


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_ensemble_of_one_student_is_that_student(average):
    probabilities = ensemble_probabilities({"student_0": LOGITS["student_0"]}, average=average)
    torch.testing.assert_close(probabilities["ensemble"], probabilities["student_0"])


def test_half_precision_logits_give_float32_probabilities():
    probabilities = ensemble_probabilities({name: value.half() for name, value in LOGITS.items()})
    assert {value.dtype for value in probabilities.values()} == {torch.float32}
    assert probabilities["ensemble"].sum().item() == pytest.approx(1)


def test_another_average_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="'probabilities' or 'logits', got 'median'"):
        ensemble_probabilities(LOGITS, average="median")
    with pytest.raises(ValueError, match="got 'median'"):
        evaluate(build_cohort(students=[TINY], use_teacher=False), ensemble_average="median")


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_evaluation_adds_the_probabilities_of_everyone(average):
    cohort = build_cohort(num_classes=3, teacher=TINY, students=[TINY, TINY, TINY])
    output = evaluate(cohort, ensemble_average=average)
    probabilities = output["probabilities"]
    assert list(probabilities) == [*cohort.names, "ensemble"]
    for value in probabilities.values():
        assert value.shape == (3, 3)
        assert value.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    expected = ensemble_probabilities(output["pred"], average=average)
    assert torch.equal(probabilities["ensemble"], expected["ensemble"])
    assert output["label"].tolist() == [0, 1, 1]


def test_evaluation_leaves_the_cohort_as_it_was():
    cohort = build_cohort(teacher=TINY, students=[TINY])
    before = {name: value.clone() for name, value in cohort.state_dict().items()}
    output = evaluate(cohort.train())
    assert all(torch.equal(value, before[name]) for name, value in cohort.state_dict().items())
    assert not output["pred"]["student_0"].requires_grad
    assert output["pred"]["student_0"].is_inference()


def test_memory_that_is_freed_is_kept_while_batches_are_evaluated(monkeypatch):
    asked = []

    @contextlib.contextmanager
    def kept(device):
        asked.append((device.type, cohort.training))
        yield
        asked.append("given back")

    monkeypatch.setattr("kdml_med.engines.evaluator.freed_memory_kept", kept)
    cohort = build_cohort(students=[TINY], use_teacher=False).train()
    evaluate(cohort)
    assert asked == [("cpu", False), "given back"]


def test_engines_send_labels_and_boxes_to_a_gpu_without_waiting():
    """As torch is told; here is no GPU that would wait."""

    told = []

    class Sent(torch.Tensor):
        def to(self, *_, **how):
            told.append(how["non_blocking"])
            return self.as_subclass(torch.Tensor)

    image, label, boxes = (torch.zeros(*size).as_subclass(Sent) for size in ((2, 3, 64, 64), (2,), (1, 4)))
    cohort = build_cohort(students=[TINY], use_teacher=False)
    evaluator = ClassificationEvaluator(device="cpu", val_data_loader=[], network=cohort)
    trainer = trainer_of(cohort, [], ClassificationCohortLoss())
    for engine in (evaluator, trainer):
        for labels, tensors in ((label, 2), ([boxes, boxes], 3)):
            told.clear()
            engine.prepare_batch({"image": image, "label": labels}, "cuda", engine.non_blocking)
            assert told == [True] * tensors


@pytest.mark.parametrize("switch", [{"amp": True}, {"amp_kwargs": {"dtype": torch.bfloat16}}])
def test_a_switch_for_mixed_precision_that_would_not_be_read_is_refused(switch):
    cohort = build_cohort(students=[TINY], use_teacher=False)
    with pytest.raises(InputError, match=r"--precision fp16.*Acceleration\(device, precision='fp16'\)"):
        trainer_of(cohort, [], ClassificationCohortLoss(), **switch)
    with pytest.raises(InputError, match="evaluation is in float32"):
        evaluate(cohort, **switch)
    assert evaluate(cohort, amp=False)
