import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import nn

from kdml_med.data import FrameDataset, PlaceFrame, RandPlaceFrame, SampleLoader
from kdml_med.engines import DetectionEvaluator, KDMLTrainer
from kdml_med.losses import DetectionCohortLoss
from kdml_med.networks import Cohort, build_cohort
from kdml_med.networks.anchors import AnchorPredictions, anchor_grid
from kdml_med.networks.boxes import Candidates, average_anchors, decode_anchors, suppress, weighted_box_fusion
from tests.examples import examples
from tests.networks.encoding import encode_boxes
from tests.reference import suppressed
from tests.synthetic_frames import write_frame_dataset

SEEDS = st.integers(0, 2**31)
TINY = {"name": "retinanet", "width": 16, "head_convs": 1, "last_block": 13}
LN3 = math.log(3)


class Oracle(nn.Module):
    """A detector that finds the same in every image: for some anchors a logit and a box, elsewhere nothing."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, image):
        anchors, _ = anchor_grid(*image.shape[-2:])
        logits = torch.full((len(image), len(anchors), 1), -20.0)
        deltas = torch.zeros(len(image), len(anchors), 4)
        for place, (logit, box) in self.found.items():
            logits[:, place] = logit
            deltas[:, place] = encode_boxes(torch.tensor([box]), anchors[[place]])
        return AnchorPredictions(logits, deltas)


def detections(found, batch=None, **kwargs):
    """Detections by network and image, of oracles that find these (place: (logit, box)) in each image."""
    batch = {"image": torch.zeros(1, 3, 64, 128), "label": [torch.zeros(0, 4)]} if batch is None else batch
    cohort = Cohort({name: Oracle(one) for name, one in found.items()})
    evaluator = DetectionEvaluator(device="cpu", val_data_loader=[batch], network=cohort, **kwargs)
    evaluator.run()
    return evaluator.state.output["detections"]


def rows(found):
    """(box, score) of the detections of one image, rounded."""
    return [
        ([round(side, 2) for side in box], round(score, 4))
        for box, score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True)
    ]


FIRST = {
    "teacher": {3: (9.0, [50.0, 10, 60, 20])},
    "student_0": {3: (LN3, [10.0, 10, 30, 30])},
    "student_1": {3: (-LN3, [12.0, 10, 34, 30])},
}


def test_the_ensemble_averages_scores_and_boxes_anchor_by_anchor():
    # Scores 3/4 and 1/4 mean 1/2; boxes are averaged side by side, whatever their scores. The teacher has no vote.
    found = detections(FIRST)
    assert list(found) == ["teacher", "student_0", "student_1", "ensemble"]
    assert rows(found["ensemble"][0]) == [([11, 10, 32, 30], 0.5)]
    assert rows(found["student_0"][0]) == [([10, 10, 30, 30], 0.75)]
    assert rows(found["student_1"][0]) == [([12, 10, 34, 30], 0.25)]
    assert rows(found["teacher"][0])[0][0] == [50, 10, 60, 20]


def test_students_can_be_fused_by_their_boxes():
    found = detections(FIRST, fusion="boxes")
    boxes, scores = weighted_box_fusion([[[10, 10, 30, 30]], [[12, 10, 34, 30]]], [[0.75], [0.25]])
    assert len(boxes) == 1
    np.testing.assert_allclose(found["ensemble"][0].boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found["ensemble"][0].scores, scores, atol=1e-5)
    # By hand: (3 · 10 + 12) / 4 and (3 · 30 + 34) / 4.
    assert rows(found["ensemble"][0]) == [([10.5, 10, 31, 30], 0.5)]
    assert rows(found["student_0"][0]) == [([10, 10, 30, 30], 0.75)]


@pytest.mark.parametrize("fusion", ["anchors", "boxes"])
def test_the_ensemble_of_one_student_is_that_student(fusion):
    found = detections({"student_0": {3: (LN3, [10.0, 10, 30, 30]), 90: (0.0, [60.0, 8, 100, 50])}}, fusion=fusion)
    assert rows(found["ensemble"][0]) == rows(found["student_0"][0])
    assert len(rows(found["ensemble"][0])) == 2


@pytest.mark.parametrize("fusion", ["anchors", "boxes"])
def test_where_nothing_is_found_detections_are_empty(fusion):
    for one in detections({"teacher": {}, "student_0": {}, "student_1": {}}, fusion=fusion).values():
        assert [tuple(image.boxes.shape) for image in one] == [(0, 4)]
        assert [tuple(image.scores.shape) for image in one] == [(0,)]
        assert one[0].boxes.dtype == one[0].scores.dtype == torch.float32


@pytest.mark.parametrize("fusion", ["anchors", "boxes"])
def test_detections_are_in_pixels_of_the_stored_frame(fusion):
    # Image 0 was stored twice as large, image 1 half as large. The input is 64 x 128, the frames fill it in part.
    batch = {
        "image": torch.zeros(2, 3, 64, 128),
        "label": [torch.zeros(0, 4)] * 2,
        "scale": torch.tensor([0.5, 2.0]),
        "frame_size": torch.tensor([[200.0, 128.0], [64.0, 30.0]]),
    }
    found = detections({"student_0": {3: (LN3, [10.0, 12, 90, 61])}}, batch, fusion=fusion)
    for name in ("student_0", "ensemble"):
        assert rows(found[name][0]) == [([20, 24, 180, 122], 0.75)]
        # The second frame ends at 60 of the input's rows.
        assert rows(found[name][1]) == [([5, 6, 45, 30], 0.75)]


@settings(deadline=None, max_examples=examples(15))
@given(SEEDS, st.tuples(st.integers(30, 300), st.integers(30, 300)))
def test_what_is_found_where_the_label_lies_lies_where_the_label_was_stored(seed, stored):
    generator = np.random.default_rng(seed)
    height, width = stored
    low = generator.uniform(0, 0.5, 2) * [width, height]
    box = np.array([[*low, *(low + generator.uniform(0.2, 0.5, 2) * [width, height])]], np.float32)
    sample = PlaceFrame((64, 128))({"image": np.zeros((height, width, 3), np.uint8), "label": box})
    batch = {
        "image": sample["image"][None],
        "label": [sample["label"]],
        "scale": torch.tensor([sample["scale"]]),
        "frame_size": torch.tensor(sample["frame_size"])[None],
    }
    found = detections({"student_0": {50: (LN3, sample["label"][0].tolist())}}, batch)
    assert found["ensemble"][0].boxes[0].tolist() == pytest.approx(box[0].tolist(), abs=0.01 * max(stored) / 64)


def test_boxes_are_cut_to_the_frame_and_what_lies_outside_goes():
    batch = {
        "image": torch.zeros(1, 3, 64, 128),
        "label": [torch.zeros(0, 4)],
        "scale": torch.tensor([1.0]),
        "frame_size": torch.tensor([[100.0, 50.0]]),
    }
    boxes = {0: (2.0, [-8.0, -6, 30, 20]), 60: (1.0, [80.0, 30, 140, 90]), 40: (3.0, [104.0, 10, 124, 30])}
    found = detections({"student_0": boxes}, batch)
    assert [box for box, _ in rows(found["ensemble"][0])] == [[0, 0, 30, 20], [80, 30, 100, 50]]
    # Without a placement the input is the frame.
    free = detections({"student_0": boxes})
    assert [box for box, _ in rows(free["ensemble"][0])] == [[104, 10, 124, 30], [0, 0, 30, 20], [80, 30, 128, 64]]


def test_thresholds_reach_the_suppression():
    found = {"student_0": {3: (LN3, [10.0, 10, 30, 30]), 90: (0.0, [10.0, 10, 30, 40]), 5: (-LN3, [80.0, 8, 100, 50])}}
    everything = detections(found, iou_threshold=0.7)["ensemble"][0]  # the first two overlap by 2/3
    assert everything.scores.tolist() == pytest.approx([0.75, 0.5, 0.25])
    assert detections(found, iou_threshold=0.6)["ensemble"][0].scores.tolist() == pytest.approx([0.75, 0.25])
    assert len(detections(found, iou_threshold=0.7, score_threshold=0.3)["ensemble"][0].scores) == 2
    assert len(detections(found, iou_threshold=0.7, max_detections=1)["ensemble"][0].scores) == 1


def test_an_unknown_fusion_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="fusion must be one of anchors, boxes, got 'nms'"):
        DetectionEvaluator(fusion="nms", device="cpu", val_data_loader=[], network=Cohort({"student_0": Oracle({})}))


def random_candidates(seed, count=40, batch=2):
    generator = torch.Generator().manual_seed(seed)
    low = 80 * torch.rand(batch, count, 2, generator=generator)
    sides = 5 + 40 * torch.rand(batch, count, 2, generator=generator)
    return Candidates(torch.cat([low, low + sides], dim=2), torch.rand(batch, count, generator=generator))


LIMITS = torch.tensor([[200.0, 200.0]] * 2)


@settings(deadline=None, max_examples=examples(15))
@given(SEEDS, st.floats(0.05, 0.95))
def test_suppression_equals_the_reference(seed, threshold):
    candidates = random_candidates(seed)
    found = suppress(candidates, limits=LIMITS, iou_threshold=threshold, score_threshold=0.1)
    for boxes, scores, one in zip(candidates.boxes, candidates.scores, found, strict=True):
        kept = [place for place in suppressed(boxes.tolist(), scores.tolist(), threshold) if scores[place] >= 0.1]
        assert torch.equal(one.boxes, boxes[kept])
        assert torch.equal(one.scores, scores[kept])


@settings(deadline=None, max_examples=examples(15))
@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_only_the_best_take_part_and_are_kept(seed, taking_part, kept):
    candidates = random_candidates(seed)
    found = suppress(candidates, limits=LIMITS, iou_threshold=1.0, max_candidates=taking_part, max_detections=kept)
    for scores, one in zip(candidates.scores, found, strict=True):
        best = scores[scores >= 0.02].sort(descending=True).values
        assert torch.equal(one.scores, best[: min(taking_part, kept)])


@settings(deadline=None, max_examples=examples(25))
@given(SEEDS, st.floats(0.05, 0.6))
def test_images_and_networks_suppressed_together_find_what_they_find_alone(seed, threshold):
    # One after the other, boxes overlap the next one: who is kept depends on all who are better.
    candidates = random_candidates(seed, count=60, batch=3)
    steps = 6.0 * torch.arange(60)
    chain = torch.stack([steps, torch.zeros(60), steps + 20, torch.full((60,), 20.0)], dim=1)
    candidates.boxes[1] = chain[torch.randperm(60, generator=torch.Generator().manual_seed(seed))]
    candidates.scores[2] = 0.01  # of which nothing is usable
    limits = torch.tensor([[70.0, 90.0], [400.0, 20.0], [50.0, 50.0]])
    scales = torch.tensor([0.5, 3.0, 1.0])
    options = {"iou_threshold": threshold, "max_candidates": 50, "max_detections": 20}
    together = suppress(candidates, limits=limits, scales=scales, **options)
    assert len(together[2].scores) == 0
    for place, one in enumerate(together):
        own = Candidates(*(part[place : place + 1] for part in candidates))
        (alone,) = suppress(own, limits=limits[place : place + 1], **options)
        assert torch.equal(one.scores, alone.scores)
        assert torch.equal(one.boxes, alone.boxes * (1 / scales[place]))
    best = candidates.scores[1].argsort(descending=True)[:50]
    kept = suppressed(candidates.boxes[1][best].tolist(), candidates.scores[1][best].tolist(), threshold)
    assert torch.equal(together[1].scores, candidates.scores[1][best][kept][:20])


@pytest.mark.parametrize("logit", [math.nan, 0.0])
def test_an_answer_that_is_no_number_ends_the_evaluation(logit):
    box = [0.0, 0.0, 32.0, 32.0] if math.isnan(logit) else [math.nan] * 4
    with pytest.raises(FloatingPointError, match="student_1 gives boxes or scores that are no numbers"):
        detections({"student_0": {}, "student_1": {5: (logit, box)}})


def test_what_is_not_a_number_is_no_detection():
    candidates = random_candidates(0)
    candidates.scores[0, 3] = candidates.boxes[1, 5, 0] = float("nan")
    expected = suppress(
        Candidates(
            torch.stack(
                [candidates.boxes[0][[i != 3 for i in range(40)]], candidates.boxes[1][[i != 5 for i in range(40)]]]
            ),
            torch.stack(
                [candidates.scores[0][[i != 3 for i in range(40)]], candidates.scores[1][[i != 5 for i in range(40)]]]
            ),
        ),
        limits=LIMITS,
    )
    for one, other in zip(suppress(candidates, limits=LIMITS), expected, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


def test_candidates_are_scored_by_their_best_class():
    deltas = torch.zeros(1, 85, 4)
    logits = torch.full((1, 85, 2), -20.0)
    logits[0, 7] = torch.tensor([0.0, LN3])
    candidates = decode_anchors(AnchorPredictions(logits.half(), deltas.half()), 64, 64)
    assert candidates.scores.dtype == candidates.boxes.dtype == torch.float32
    assert candidates.scores[0, 7].item() == pytest.approx(0.75, abs=1e-3)
    assert torch.equal(candidates.boxes[0], anchor_grid(64, 64)[0])


def test_averages_of_candidates_by_hand():
    one = Candidates(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0.2]]))
    other = Candidates(torch.tensor([[[4.0, 2, 20, 30]]]), torch.tensor([[0.6]]))
    mean = average_anchors([one, other])
    assert mean.boxes.tolist() == [[[2, 1, 15, 20]]]
    assert mean.scores[0].tolist() == pytest.approx([0.4])


def tiny_cohort(seed=0):
    return build_cohort(task="detection", num_classes=1, seed=seed, teacher=TINY, students=[TINY, TINY])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_frame_dataset(tmp_path_factory.mktemp("frames"))


def train(cohort, loader, *, epochs=1, learning_rate=3e-3, **settings):
    losses = []
    trainer = KDMLTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=cohort,
        optimizer=torch.optim.AdamW(cohort.parameter_groups(), lr=learning_rate),
        loss_function=DetectionCohortLoss(**settings),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss_terms"]))
    trainer.run()
    return losses


def training_batches(folder, transform, **kwargs):
    return SampleLoader(FrameDataset(folder, "train", transform=transform), batch_size=6, training=True, **kwargs)


def test_training_changes_every_network_and_lowers_the_loss(folder):
    cohort = tiny_cohort()
    before = copy.deepcopy(cohort)
    losses = train(cohort, training_batches(folder, PlaceFrame(64)), epochs=5)
    assert len(losses) == 5
    assert set(losses[0]) == {"teacher_task", "loss"} | {
        f"student_{index}_{term}" for index in (0, 1) for term in ("task", "kd", "ml")
    }
    for term in ("loss", "teacher_task", "student_0_task", "student_1_task"):
        assert losses[-1][term] < 0.9 * losses[0][term], term
    for name, parameter in cohort.named_parameters():
        if "weight" in name:
            assert not torch.equal(parameter, before.get_parameter(name)), name


def test_independent_students_train_bit_for_bit_as_if_alone(folder):
    together = tiny_cohort(seed=3)
    loader = training_batches(folder, RandPlaceFrame(64))
    train(together, loader, beta=0.0, gamma=0.0)
    for name in together.names:
        alone = Cohort({"student_0": tiny_cohort(seed=3).networks[name]})
        train(alone, loader, beta=0.0, gamma=0.0)
        state = alone.networks["student_0"].state_dict()
        for entry, value in together.networks[name].state_dict().items():
            assert torch.equal(value, state[entry]), (name, entry)


def test_training_stops_at_the_first_network_that_is_not_finite_and_names_it(folder):
    cohort = tiny_cohort()
    nn.init.constant_(cohort.networks["student_1"].detector.classification_head.cls_logits.bias, float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"^the loss of student_1 is no number in epoch 1, batch 1 of 1 .*samples "
    ):
        train(cohort, training_batches(folder, PlaceFrame(64)), gamma=0.0)


def test_boxes_that_are_not_finite_are_named_like_scores(folder):
    cohort = tiny_cohort()
    nn.init.constant_(cohort.networks["teacher"].detector.regression_head.bbox_reg.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"^the loss of teacher is no number .*\(teacher_task nan"):
        train(cohort, training_batches(folder, PlaceFrame(64)))


@pytest.mark.parametrize("fusion", ["anchors", "boxes"])
def test_a_cohort_is_evaluated_on_frames_of_a_dataset(folder, fusion):
    cohort = tiny_cohort().train()
    before = {name: value.clone() for name, value in cohort.state_dict().items()}
    loader = SampleLoader(FrameDataset(folder, "val", transform=PlaceFrame((64, 128))), batch_size=2)
    evaluator = DetectionEvaluator(
        device="cpu", val_data_loader=loader, network=cohort, fusion=fusion, score_threshold=0.0, max_detections=7
    )
    seen = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(evaluator.state.output))
    evaluator.run()
    assert [len(output["detections"]["ensemble"]) for output in seen] == [2, 1]
    for output in seen:
        assert set(output["detections"]) == {"teacher", "student_0", "student_1", "ensemble"}
        assert output["label"][1] == (64, 128)
        for name, images in output["detections"].items():
            for one in images:
                assert 0 < len(one.scores) <= (7 if name != "ensemble" or fusion == "anchors" else 14)
                assert (one.scores.diff() <= 0).all()
                assert (one.boxes >= 0).all()
                assert (one.boxes <= torch.tensor([64, 48, 64, 48]) + 1e-3).all()
                assert not one.boxes.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in cohort.state_dict().items())


def test_detectors_are_trained_with_anchors_that_an_evaluation_asked_for_first(folder):
    cohort, loader = tiny_cohort(), SampleLoader(FrameDataset(folder, "val", transform=PlaceFrame(64)), batch_size=2)
    anchor_grid.cache_clear()
    DetectionEvaluator(device="cpu", val_data_loader=loader, network=cohort).run()
    (losses,) = train(cohort, training_batches(folder, PlaceFrame(64)))
    assert losses["loss"].isfinite()
