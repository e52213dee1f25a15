import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.metrics.box_matching import box_iou, match_detections, read_frames
from kdml_med.storage.manifest import DatasetKind, manifest_table
from tests.examples import examples
from tests.metrics.detection_tables import boxes, cases, detection_table, frame_table
from tests.reference import overlap_of


def test_overlap_of_known_boxes() -> None:
    first = [[0, 0, 10, 10], [5, 5, 5, 9]]
    second = [[0, 0, 10, 10], [0, 0, 10, 5], [5, 0, 15, 10], [10, 0, 20, 10], [5, 5, 5, 9]]
    expected = [[1, 0.5, 1 / 3, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(box_iou(first, second), expected)
    assert box_iou([], second).shape == (0, 5)
    assert box_iou(first, np.empty((0, 4))).shape == (2, 0)


@given(st.lists(boxes, max_size=4), st.lists(boxes, max_size=4))
def test_overlap_is_symmetric_and_that_of_single_boxes(first: list[tuple], second: list[tuple]) -> None:
    found = box_iou(first, second)
    np.testing.assert_array_equal(found, box_iou(second, first).T)
    for row, one in zip(found, first, strict=True):
        assert row.tolist() == pytest.approx([overlap_of(one, other) for other in second])


def test_each_box_is_found_once_and_by_the_highest_score() -> None:
    truth = read_frames(frame_table({"a": [(0, 0, 10, 10)], "b": []}))
    detections = detection_table(
        {"a": [(0.3, (0, 0, 10, 10)), (0.9, (0, 0, 10, 8)), (0.5, (0, 0, 10, 6))], "b": [(0.7, (0, 0, 10, 10))]}
    )
    matches = match_detections(truth, detections, iou_thresholds=(0.5, 0.75, 0.95))
    assert matches.score.tolist() == [0.9, 0.7, 0.5, 0.3]
    assert matches.frame.tolist() == [0, 1, 0, 0]
    assert matches.box.tolist() == [[0, -1, -1, -1], [0, -1, -1, -1], [-1, -1, -1, 0]]


def test_the_centre_rule_forgives_a_second_hit_but_not_a_miss() -> None:
    truth = read_frames(frame_table({"a": [(0, 0, 10, 10), (8, 0, 18, 10)]}))
    detections = detection_table(
        {"a": [(0.9, (8, 4, 10, 6)), (0.8, (4, 4, 6, 6)), (0.7, (8, 4, 10, 6)), (0.6, (30, 30, 40, 40))]}
    )
    matches = match_detections(truth, detections, hit="centre")
    # (9, 5) is 4 px from either centre: the later box; the third lies in boxes that are both taken.
    assert matches.score.tolist() == [0.9, 0.8, 0.6]
    assert matches.box.tolist() == [[1, 0, -1]]


@settings(max_examples=examples(50), deadline=None)
@given(cases(), st.sampled_from(["iou", "centre"]), st.randoms(use_true_random=False))
def test_the_order_of_the_frames_does_not_matter(case, hit, random) -> None:
    annotated, detected = case
    names = list(annotated)
    random.shuffle(names)
    detections = detection_table(detected)
    shuffled = detection_table({name: detected[name] for name in names})
    found = match_detections(read_frames(frame_table({name: annotated[name] for name in names})), shuffled, hit=hit)
    expected = match_detections(read_frames(frame_table(annotated)), detections, hit=hit)
    np.testing.assert_array_equal(found.box, expected.box)
    np.testing.assert_array_equal(found.frame, expected.frame)


def test_only_the_highest_scores_of_a_frame_count() -> None:
    truth = read_frames(frame_table({"a": [(0, 0, 10, 10)], "b": []}))
    many = [(index / 200, (20, 20, 30, 30)) for index in range(1, 120)]
    detections = detection_table({"a": [(0.001, (0, 0, 10, 10)), *many], "b": many[:3]})
    matches = match_detections(truth, detections, iou_thresholds=(0.5,))
    assert np.bincount(matches.frame).tolist() == [100, 3]
    assert (matches.box < 0).all()
    assert (match_detections(truth, detections, iou_thresholds=(0.5,), max_detections=120).box >= 0).sum() == 1


def test_rows_of_a_manifest_are_understood() -> None:
    row = {"patient_id": "p", "sequence_id": "s", "width": 9, "height": 9, "crop_x": 0, "crop_y": 0, "scale": 1.0}
    row |= {"source": "x", "shard": "x", "offset": 0, "size": 1}
    rows = [
        row | {"sample_id": "c", "label": "polyp", "boxes": [[0.0, 0, 4, 4], [1, 1, 5, 5]], "polyp_ids": ["q", None]},
        row | {"sample_id": "a", "label": "negative", "boxes": []},
        row | {"sample_id": "b", "label": None, "boxes": None},
        row | {"sample_id": "d", "label": "polyp", "boxes": [[2.0, 2, 6, 6]]},
    ]
    truth = read_frames(manifest_table(rows, DatasetKind.FRAMES).to_pandas())
    assert truth.sample_ids.tolist() == ["a", "c", "d"]
    assert truth.boxes.tolist() == [[0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 6, 6]]
    assert truth.box_frame.tolist() == [1, 1, 2]
    assert truth.polyps.tolist() == ["q", None, None]
    assert truth.unlabelled == {"b"}
    left = match_detections(truth, detection_table({"b": [(0.5, (0, 0, 4, 4))], "c": [(0.4, (0, 0, 4, 4))]}))
    assert left.score.tolist() == [0.4]


def test_boxes_may_be_arrays_or_absent() -> None:
    frames = pd.DataFrame({"sample_id": ["a", "b"], "sequence_id": "s", "patient_id": "p"})
    frames["boxes"] = [np.array([[0, 0, 1, 1]]), None]
    truth = read_frames(frames)
    assert truth.boxes.shape == (1, 4)
    assert truth.unlabelled == {"b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[[0, 0, 1]]]}, r"expected \[xmin"),
        ({"boxes": [[[3, 0, 1, 1]]]}, r"expected \[xmin"),
        ({"boxes": [[[0, 0, 1, float("nan")]]]}, r"expected \[xmin"),
        ({"polyp_ids": [["p", "q"]]}, "1 boxes and 2 polyp_ids"),
    ],
)
def test_unusable_frames_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_frames(frame_table({"a": [(0, 0, 1, 1)]}).assign(**change))


def test_unusable_tables_are_refused() -> None:
    frames = frame_table({"a": [(0, 0, 1, 1)]})
    truth, detections = read_frames(frames), detection_table({"a": [(0.5, (0, 0, 1, 1))]})
    with pytest.raises(ValueError, match="lack the columns"):
        read_frames(frames.drop(columns="boxes"))
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        read_frames(pd.concat([frames, frames]))
    with pytest.raises(ValueError, match="lack the columns"):
        match_detections(truth, detections.drop(columns="xmax"))
    with pytest.raises(ValueError, match="one network"):
        match_detections(truth, pd.concat([detections, detections.assign(network="teacher")]))
    with pytest.raises(ValueError, match="not a finite number"):
        match_detections(truth, detections.assign(score=np.nan))
    with pytest.raises(ValueError, match="not in frames: 'z'"):
        match_detections(truth, detections.assign(sample_id="z"))
    with pytest.raises(ValueError, match="hit"):
        match_detections(truth, detections, hit="corner")
    with pytest.raises(ValueError, match="not at an IoU of"):
        match_detections(truth, detections, iou_thresholds=(0.5,)).row(0.6)
