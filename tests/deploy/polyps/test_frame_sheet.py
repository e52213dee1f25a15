"""Frames with missed polyps first: what is counted, the order, and what the sheets show."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdml_med.deploy.polyps import frame_sheet
from kdml_med.deploy.polyps.annotate import Detected
from kdml_med.deploy.polyps.frame_sheet import SheetFrame, collect_frames, write_sheets
from kdml_med.deploy.polyps.frames import count_frames, judge_frames
from kdml_med.errors import InputError
from kdml_med.metrics.box_matching import box_iou
from kdml_med.metrics.detection_evaluation import sequence_table
from tests.colonoscopy.pictures import frame
from tests.examples import examples

GREEN, YELLOW, RED = (0, 255, 150), (255, 235, 0), (255, 110, 110)
BOX = (60.0, 50.0, 110.0, 90.0)
ELSEWHERE = (10.0, 10.0, 30.0, 30.0)


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 60) -> int:
    return int((np.abs(picture.astype(int) - colour) < tolerance).all(axis=2).sum())


def rows_of(labels: dict[str, list[tuple[float, ...]] | None]) -> pd.DataFrame:
    """Rows of a manifest, by sample_id "<sequence><number>"; None for frames without a label."""
    return pd.DataFrame(
        {
            "sample_id": list(labels), "sequence_id": [name[0] for name in labels],
            "patient_id": [name[0] for name in labels], "source": list(labels), "frame_index": range(len(labels)),
            "label": [None if boxes is None else "polyp" if boxes else "negative" for boxes in labels.values()],
            "boxes": [None if boxes is None else [list(box) for box in boxes] for boxes in labels.values()],
        }
    )  # fmt: skip


def found_of(detected: dict[str, list[tuple[tuple[float, ...], float]]]) -> pd.DataFrame:
    rows = [(name, "ensemble", score, *box) for name, boxes in detected.items() for box, score in boxes]
    return pd.DataFrame(rows, columns=["sample_id", "network", "score", "xmin", "ymin", "xmax", "ymax"])


LABELS = {
    "a0": [BOX], "a1": [BOX], "a2": [], "b0": [BOX, ELSEWHERE], "b1": [], "c0": None, "c1": [BOX],
}  # fmt: skip
DETECTED = {
    "a0": [(BOX, 0.9)], "a1": [(BOX, 0.3)], "a2": [(BOX, 0.7)], "b0": [(BOX, 0.8), (BOX, 0.6)], "c0": [(BOX, 0.99)],
    "c1": [(BOX, 0.5), (ELSEWHERE, 0.6)],
}  # fmt: skip


def judge(threshold: float = 0.5) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = rows_of(LABELS)
    return rows, judge_frames(rows, found_of(DETECTED), {"ensemble": threshold}, ["ensemble"])["ensemble"]


def test_frames_are_judged_at_the_threshold_and_only_where_they_are_labelled():
    rows, judged = judge()
    numbers = judged[["found", "missed", "false"]].itertuples(index=False, name=None)
    counts = dict(zip(rows["sample_id"], numbers, strict=True))
    unlabelled = counts.pop("c0")
    assert all(pd.isna(value) for value in unlabelled)
    assert counts == {
        "a0": (1, 0, 0), "a1": (0, 1, 0), "a2": (0, 0, 1), "b0": (1, 1, 1), "b1": (0, 0, 0), "c1": (1, 0, 1),
    }  # fmt: skip
    assert [None if one is None else one.tolist() for one in judged["missed_boxes"]] == [
        [False], [True], [], [False, True], [], None, [False],
    ]  # fmt: skip


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_sums_are_those_of_the_metrics_and_one_box_is_found_once(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    names = [f"{letter}{number}" for letter in "abc" for number in range(3)]

    def boxes(count: int) -> list[tuple[float, ...]]:
        low = generator.uniform(0, 30, (count, 2))
        return [tuple(box) for box in np.hstack([low, low + generator.uniform(20, 40, (count, 2))])]

    rows = rows_of({name: boxes(generator.integers(0, 3)) for name in names})
    found = found_of({name: [(box, generator.uniform()) for box in boxes(generator.integers(0, 4))] for name in names})
    judged = judge_frames(rows, found, {"ensemble": threshold}, ["ensemble"])["ensemble"]
    table = sequence_table(rows, found.assign(sequence_id="", patient_id=""), threshold={"ensemble": threshold})
    sums = judged[["found", "missed", "false"]].groupby(rows["sequence_id"]).sum()
    assert sums["false"].tolist() == table["false_positives_ensemble"].tolist()
    shares = table["sensitivity_ensemble"].to_numpy()
    expected = [np.nan if not f + m else f / (f + m) for f, m in zip(sums["found"], sums["missed"], strict=True)]
    np.testing.assert_allclose(shares, np.array(expected, float))
    for place, row in rows.iterrows():
        own = found[(found["sample_id"] == row["sample_id"]) & (found["score"] >= threshold)]
        assert judged["found"][place] + judged["false"][place] == len(own)
        assert judged["missed"][place] == judged["missed_boxes"][place].sum()
        if len(row["boxes"]) and len(own):
            overlap = box_iou(row["boxes"], own[["xmin", "ymin", "xmax", "ymax"]]).max(axis=1)
            assert not judged["missed_boxes"][place].all() or (overlap < 0.5).all()


def collected(threshold: float = 0.5) -> list[SheetFrame]:
    rows, judged = judge(threshold)
    detected = {name: [Detected(box, score) for box, score in boxes] for name, boxes in DETECTED.items()}
    return collect_frames(rows, range(len(rows)), detected, judged, threshold)


def test_missed_polyps_come_first_then_false_alarms_and_sequences_take_turns():
    frames = collected()
    assert [frame.sample_id for frame in frames] == ["b0", "a1", "a2", "c1", "c0", "a0", "b1"]
    assert [frame.caption[0] for frame in frames] == [
        "MISSED 1 of 2, 1 false, best 0.80", "MISSED 1 of 1, best 0.30", "FALSE ALARM: 1 false, no polyp, best 0.70",
        "FALSE ALARM: 1 false, found 1 of 1, best 0.60", "best 0.99", "found 1 of 1, best 0.90",
        "no polyp, nothing detected",
    ]  # fmt: skip
    one_each = rows_of({"a0": None, "a1": None, "a2": None, "b0": None, "c0": None})
    judged = judge_frames(one_each, found_of({}), {"ensemble": 0.5}, ["ensemble"])["ensemble"]
    scores = {"a0": 0.5, "a1": 0.9, "a2": 0.8, "b0": 0.6}
    detected = {name: [Detected(BOX, score)] for name, score in scores.items()}
    order = collect_frames(one_each, range(5), detected, judged, 0.5)
    assert [frame.sample_id for frame in order] == ["a1", "b0", "c0", "a2", "a0"]
    assert collect_frames(one_each, [], detected, judged, 0.5) == []


def test_the_table_has_the_counts_and_the_same_groups_first():
    rows, judged = judge()
    boxes = found_of(DETECTED).assign(above_threshold=lambda table: table["score"] >= 0.5)
    table = count_frames(rows, boxes, ["ensemble"], {"ensemble": judged}, "ensemble")
    assert table["sample_id"].tolist() == ["a1", "b0", "a2", "c1", "a0", "b1", "c0"]
    assert table["annotated"].fillna(-1).tolist() == [1, 2, 0, 1, 1, 0, -1]
    assert table["missed_ensemble"].fillna(-1).tolist() == [1, 1, 0, 0, 0, 0, -1]
    unlabelled = rows.assign(label=None)
    plain = count_frames(unlabelled, boxes, ["ensemble"], {}, "ensemble")
    assert plain["sample_id"].tolist() == list(LABELS)
    assert not {"annotated", "missed_ensemble"} & set(plain.columns)


def sheet(folder: Path, frames: list[SheetFrame]) -> tuple[list[str], list[np.ndarray]]:
    dataset = SimpleNamespace(read=lambda position: frame(seed=position))
    names = write_sheets(folder / "sheet.jpg", dataset, frames, network="ensemble", threshold=0.5)
    return names, [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]


def test_a_sheet_shows_what_was_detected_annotated_and_missed(tmp_path: Path):
    names, (page,) = sheet(tmp_path, collected()[:2] + collected()[-2:])
    assert names == [path.name for path in tmp_path.iterdir()] == ["sheet.jpg"]
    cells = np.split(page[-276:], 4, axis=1)
    assert [near(cell, GREEN) > 100 for cell in cells] == [True, False, True, False]
    assert [near(cell[:240], YELLOW) > 50 for cell in cells] == [True, True, False, False]
    assert [near(cell, RED, 40) > 500 for cell in cells] == [True, True, False, False]
    assert near(page[:-276], GREEN) > 20, "the colours are explained"


def test_pages_are_limited_which_the_picture_says_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frame_sheet, "PAGE_FRAMES", 4)
    labelled = collected()[0]
    names, pages = sheet(tmp_path, [labelled] * 5)
    assert names == ["sheet.jpg", "sheet-2.jpg"]
    assert pages[0].shape[1] > pages[1].shape[1], "four cells in a row, then one"
    assert sheet(tmp_path, [labelled] * 100)[0][-1] == "sheet-5.jpg"
    unlabelled = collected()[-3]
    assert unlabelled.false is None
    (tmp_path / "sheet-of-mine.jpg").write_bytes(b"")
    assert sheet(tmp_path, [unlabelled] * 100)[0] == ["sheet.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet-of-mine.jpg", "sheet.jpg"]
    assert sheet(tmp_path, [])[0] == []
    assert not (tmp_path / "sheet.jpg").exists()


def test_a_sheet_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot write .*sheet\.jpg: "):
        sheet(tmp_path / "file", collected())
