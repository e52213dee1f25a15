from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdml_med.handlers.tensorboard_boxes import box_agreement
from kdml_med.handlers.tensorboard_curves import calibration_figure, froc_figure, roc_figure
from kdml_med.handlers.tensorboard_frames import MAX_BOXES, frame_figures, judge_frame, worst_frames
from kdml_med.metrics.detection import by_network
from kdml_med.report.figures import ON_DARK, network_colour
from tests.handlers.test_tensorboard import BOX, FAR, NETWORKS, ensemble_found, events_of, frames_of, show
from tests.metrics.detection_tables import cohort, detection_table, frame_table

ANNOTATED, HIT, FALSE = (255, 235, 0), (0, 255, 150), (255, 90, 255)
THRESHOLDS = dict.fromkeys(NETWORKS, 0.5)


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == colour).all(axis=2).sum())


def only_picture(boxes: list, detected: list) -> np.ndarray:
    frames, detections = ensemble_found({"f": boxes}, {"f": detected})
    (image,) = frame_figures(frames_of(frames), by_network(detections), THRESHOLDS, spread=1, worst=0).values()
    return image[24:-24]  # without title and legend, whose letters have the same colours


def test_worst_frames_are_misses_and_false_alarms_in_turn() -> None:
    frames, detections = ensemble_found(
        {"right": [BOX], "missed": [BOX], "weak": [BOX], "loud": [], "louder": [BOX], "quiet": []},
        {
            "right": [(0.9, BOX)],
            "weak": [(0.3, BOX)],
            "loud": [(0.6, BOX)],
            "louder": [(0.95, BOX), (0.8, FAR)],
            "quiet": [(0.4, FAR)],
        },
    )
    ranked = worst_frames(frames, by_network(detections)["ensemble"], 0.5)
    assert [frames["sample_id"][position] for position, _ in ranked] == ["missed", "louder", "weak", "loud"]
    assert [reason for _, reason in ranked] == [
        "missed polyp, best box on it 0.00",
        "false alarm 0.80",
        "missed polyp, best box on it 0.30",
        "false alarm 0.60",
    ]


def test_worst_frames_are_of_different_sequences_first() -> None:
    boxes = {"a1": [BOX], "a2": [BOX], "b1": [BOX]}
    frames, detections = ensemble_found(boxes, {"b1": [(0.2, BOX)]}, sequences=["a", "a", "b"])
    ranked = worst_frames(frames, by_network(detections)["ensemble"], 0.5)
    assert [frames["sample_id"][position] for position, _ in ranked] == ["a1", "b1", "a2"]


def test_worst_frames_are_not_shown_twice(tmp_path: Path) -> None:
    frames, detections = ensemble_found({"a": [BOX], "b": [BOX], "c": [BOX]}, {"a": [(0.9, BOX)]})
    shown = show(tmp_path, frames, detections, frames=2, worst_frames=4)
    assert sorted(shown) == ["val/froc", "val_frames_spread/1", "val_frames_spread/2", "val_frames_worst/1"]


def test_found_missed_and_false_boxes_have_their_colours() -> None:
    hit = only_picture([BOX], [(0.9, BOX)])
    assert count(hit, HIT) > 0
    assert count(hit, FALSE) == 0
    missed = only_picture([BOX], [(0.9, FAR), (0.4, BOX)])
    assert count(missed, HIT) == 0
    assert count(missed, FALSE) > 0
    solid = count(hit, ANNOTATED)
    assert solid < count(missed, ANNOTATED) < solid * (1 + 0.8 * len(NETWORKS)), "four more, dashed"


def test_at_most_five_boxes_are_drawn_and_all_are_counted() -> None:
    many = [(0.9 - 0.01 * number, (10 * number, 0, 10 * number + 8, 50)) for number in range(8)]
    frames, detections = ensemble_found({"f": []}, {"f": many})
    judged = judge_frame(frames, by_network(detections)["ensemble"], 0.5)
    assert len(judged.boxes) == 8
    assert judged.wrong
    assert count(only_picture([], many), FALSE) == count(only_picture([], many[:5]), FALSE) > 0


def test_a_box_that_found_a_polyp_is_drawn_before_more_certain_false_alarms() -> None:
    alarms = [(0.9, (45 + number, 10, 75 + number, 40)) for number in range(MAX_BOXES)]
    assert count(only_picture([BOX], [*alarms, (0.6, BOX)]), HIT) > 0
    frames, detections = ensemble_found({"f": [BOX]}, {"f": [*alarms, (0.6, BOX)]})
    judged = judge_frame(frames, by_network(detections)["ensemble"], 0.5)
    assert judged.shown == [3, 2, 1, 0, 5], "the found one last, on top of all"


def test_the_first_panel_has_the_boxes_of_every_network_in_its_colour() -> None:
    frames = frame_table({"f": [BOX]})
    found = {name: (10 + 5 * number, 5, 30 + 5 * number, 55) for number, name in enumerate(NETWORKS)}
    detections = pd.concat([detection_table({"f": [(0.9, box)]}, name) for name, box in found.items()])
    (image,) = frame_figures(frames_of(frames), by_network(detections), THRESHOLDS, spread=1, worst=0).values()
    first, rest = image[50:262, :326], image[50:262, 326:]
    for name in NETWORKS:
        colour = ON_DARK[network_colour(name)]
        own = tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
        assert count(first, own) > 100, name
        assert count(rest, own) == 0, "elsewhere in titles alone"


def test_boxes_beyond_the_border_are_drawn_inside() -> None:
    outside = [(0.9, (-20, -20, 500, 500)), (0.8, (79.9, 59.9, 80, 60)), (0.7, (90, 70, 95, 75))]
    assert count(only_picture([], outside), FALSE) > 0


@pytest.mark.parametrize("boxes", [{"a": [BOX], "b": []}, {"a": [], "b": []}], ids=["polyp", "negative"])
@pytest.mark.parametrize("detected", [{}, {"a": [(0.7, BOX)]}, {"a": [(np.nan, BOX)]}], ids=["none", "one", "diverged"])
def test_little_or_nothing_found_or_annotated_is_shown(boxes: dict, detected: dict, tmp_path: Path) -> None:
    frames, detections = ensemble_found(boxes, detected)
    shown = show(tmp_path, frames, detections, worst_frames=1)
    assert ("val/froc" in shown) == any(boxes.values())
    assert {"val_frames_spread/1", "val_frames_spread/2"} <= set(shown)
    assert [point.value for point in events_of(tmp_path, "cohort").Scalars("val/agreement_teacher_student_0")] == [1]


def test_agreement_is_the_share_of_boxes_that_both_drew() -> None:
    frames = frame_table({"same": [BOX], "half": [], "other": [BOX], "neither": [BOX]})
    near = (12, 10, 42, 40)
    a = detection_table({"same": [(0.9, BOX)], "half": [(0.6, BOX)], "other": [(0.9, BOX)]}, "student_0")
    b = detection_table(
        {"same": [(0.9, near)], "half": [(0.9, near), (0.9, FAR), (0.9, (0, 45, 30, 60))], "other": [(0.9, FAR)]},
        "student_1",
    )
    low = detection_table({"neither": [(0.4, BOX)]}, "student_1")
    detections = by_network(pd.concat([a, b, low], ignore_index=True), ["ensemble"])
    thresholds = {"student_0": 0.5, "student_1": 0.5, "ensemble": 0.5}
    shares = box_agreement(frames, detections, thresholds)
    assert shares == {"agreement_student_0_student_1": pytest.approx((1 + 2 / 4 + 0 + 1) / 4)}
    reverse = box_agreement(frames, detections, {"student_1": 0.5, "student_0": 0.5})
    assert reverse["agreement_student_1_student_0"] == pytest.approx(shares["agreement_student_0_student_1"])


def test_froc_figure_has_one_size_whatever_was_found() -> None:
    frames, detections = cohort(networks=NETWORKS)
    (some,) = froc_figure(frames, by_network(detections), THRESHOLDS).values()
    (none,) = froc_figure(frames, by_network(detections.iloc[:0], NETWORKS), THRESHOLDS).values()
    assert some.dtype == np.uint8
    assert some.shape == none.shape
    assert (some != none).any()


def test_curves_of_classifiers_change_with_the_answers_and_keep_their_size() -> None:
    labels = np.array([0, 1] * 10)
    some, right = (labels, np.linspace(0, 1, 20)), (labels, labels * 0.8)
    for draw in (lambda own: roc_figure(dict.fromkeys(NETWORKS, own)), lambda own: calibration_figure("teacher", own)):
        (before,), (after,) = draw(some).values(), draw(right).values()
        assert before.shape == after.shape
        assert (before != after).any()
