"""Pictures of wrong frames: annotation and detection can be told apart without colour."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from kdml_med.clinical.polyps import pictures
from kdml_med.clinical.polyps.detections import judged_detectors
from kdml_med.clinical.polyps.pictures import MOST_FRAMES, draw_finding, picture_parts
from kdml_med.clinical.rules import rules_of_run
from kdml_med.clinical.study import read_study
from kdml_med.handlers.tensorboard_frames import Judgement, judge_frame
from kdml_med.report.document import Gallery, Paragraph
from tests.clinical.detectors import write_study
from tests.examples import examples
from tests.metrics.detection_tables import detection_table, frame_table

GREY = np.full((400, 400, 3), 128, np.uint8)


def judgement(boxes, hits, missed):
    return Judgement(
        np.array(boxes, float).reshape(-1, 4), np.linspace(0.9, 0.5, len(boxes)), np.array(hits, bool),
        np.array(missed, float).reshape(-1, 4),
    )  # fmt: skip


def edge_runs(jpeg: bytes, y: int, left: int, right: int) -> int:
    """How often a horizontal edge of a box begins, going along it; 1 where its line is solid."""
    row = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)[y, left:right]
    drawn = np.abs(row - 128).sum(axis=1) > 90
    return int((np.diff(drawn.astype(int), prepend=0) > 0).sum())


def test_annotation_is_dashed_and_a_detection_is_solid():
    annotated = [100, 250, 300, 350]
    found = [100, 60, 300, 160]
    jpeg = draw_finding(GREY, np.array([annotated], float), judgement([found], [False], [annotated]))
    assert edge_runs(jpeg, 251, 110, 290) > 4
    assert edge_runs(jpeg, 61, 110, 290) == 1


def test_a_picture_is_a_small_jpeg_of_any_frame():
    generator = np.random.default_rng(0)
    for height, width in ((1, 1), (1080, 1920), (300, 20)):
        frame = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        box = [0.0, 0.0, float(width), float(height)]
        jpeg = draw_finding(frame, np.array([box]), judgement([box], [True], []))
        picture = Image.open(io.BytesIO(jpeg))
        assert picture.format == "JPEG"
        assert max(picture.size) == 400
        assert len(jpeg) < 100_000


@settings(max_examples=examples(20))
@given(st.lists(st.tuples(*[st.integers(0, 399)] * 4), min_size=1, max_size=4))
def test_labels_stand_in_the_picture_and_apart_where_there_is_room(corners):
    draw = ImageDraw.Draw(Image.new("RGB", (400, 400)))
    taken = []
    for x, y, other_x, other_y in corners:
        edges = [min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)]
        pictures._label(draw, edges, "0.53 false", (255, 255, 255), (400, 400), taken)
    assert all(left >= 0 and top >= 0 and right < 400 and bottom < 400 for left, top, right, bottom in taken)


def test_labels_of_one_box_do_not_cover_each_other():
    draw = ImageDraw.Draw(Image.new("RGB", (400, 400)))
    taken = []
    for text in ("missed", "0.91", "0.53 false"):
        pictures._label(draw, [150, 150, 250, 250], text, (255, 255, 255), (400, 400), taken)
    assert not any(pictures._overlap(one, other) for one, other in combinations(taken, 2))


def test_no_line_goes_through_a_label():
    """The label of the first polyp stands where the dashes of the second one begin."""
    boxes = [[100, 100, 300, 150], [100, 152, 300, 300]]
    jpeg = draw_finding(GREY, np.array(boxes, float), judgement([], [], boxes[:1]))
    label = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))[155:159, 106:190].astype(int)
    assert (np.abs(label - pictures.ANNOTATED).sum(axis=2) < 60).mean() > 0.9


def test_what_is_wrong_is_said_in_words():
    frame = frame_table({"a": [[0, 0, 10, 10], [50, 50, 60, 60]]})
    found = detection_table({"a": [(0.9, [0, 0, 10, 10]), (0.8, [30, 30, 40, 40]), (0.7, [70, 0, 80, 9])]})
    said = pictures._wrong(judge_frame(frame, found, 0.5), 2)
    assert said == "1 of 2 missed; 2 false alarms, up to 0.80"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    splits = {"T": "train", "V": "val"} | {f"P{number}": "test" for number in range(5)}
    return write_study(tmp_path_factory.mktemp("study"), splits=splits, frames=6)


def judged(run):
    return judged_detectors(read_study(run), rules_of_run(run))[0]


def test_the_gallery_begins_with_different_sequences_and_is_limited(run):
    one = judged(run)
    (gallery,) = picture_parts(one)
    assert isinstance(gallery, Gallery)
    assert len(gallery.items) <= MOST_FRAMES
    sequences = [item.caption.partition("sequence ")[2].partition("\n")[0] for item in gallery.items]
    different = len(set(sequences))
    assert different > 1
    assert len(set(sequences[:different])) == different
    assert all(item.alt and item.image[:2] == b"\xff\xd8" for item in gallery.items)
    assert f"{len(gallery.items)} of" in gallery.title or f": {len(gallery.items)} frame" in gallery.title


def test_frames_without_an_error_are_said_to_be_so(run):
    one = judged(run)
    only = one.detections["ensemble"]
    names = np.repeat(one.frames["sample_id"].to_numpy(), one.frames["boxes"].map(len).to_numpy())
    corners = np.concatenate([np.stack(boxes) for boxes in one.frames["boxes"] if len(boxes)])
    table = only.iloc[[0] * len(corners)].assign(sample_id=names, score=0.99)
    table[["xmin", "ymin", "xmax", "ymax"]] = corners
    object.__setattr__(one, "detections", one.detections | {"ensemble": table})
    (text,) = picture_parts(one)
    assert isinstance(text, Paragraph)
    assert "missed no polyp and gave no false alarm" in text.text
