"""The page of a run of detectors says what its detections and the annotation give, and why something is missing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdml_med.clinical.networks import count_costs
from kdml_med.clinical.polyps import sections
from kdml_med.clinical.polyps.detections import judged_detectors
from kdml_med.clinical.polyps.flow import flow_section
from kdml_med.clinical.polyps.sections import collect_figures, polyp_report
from kdml_med.clinical.polyps.tables import (
    MOST_SEQUENCES,
    frozen_table,
    operating_table,
    sequences_table,
    undefined_at_threshold,
)
from kdml_med.clinical.rules import rules_of_run
from kdml_med.clinical.study import read_study
from kdml_med.clinical.writing import write_report
from kdml_med.errors import InputError
from kdml_med.metrics.detection import choose_thresholds
from kdml_med.metrics.detection_evaluation import evaluate_detections
from kdml_med.report.document import Bullets, Gallery, Paragraph, Picture, Table
from kdml_med.runs import DETECTIONS_FILE, METRICS_FILE
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import MANIFEST_FILE
from kdml_med.storage.reading import read_json
from tests.clinical.detectors import NETWORKS, RESAMPLES, SPLITS, made_up_detections, write_judged, write_study
from tests.synthetic_frames import write_frame_dataset


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, evaluated on its test split; not to be changed."""
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def found(written: Path):
    """Its report."""
    return report(written)


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def judged(run: Path, **more):
    return judged_detectors(read_study(run, **more), rules_of_run(run))


def report(run: Path, **more):
    study = read_study(run, **more)
    return polyp_report(study, rules_of_run(run), count_costs(study, {}, speed=False))


def parts_of(sections, kind):
    return [part for section in sections for part in section.parts if isinstance(part, kind)]


def text_of(sections) -> str:
    bullets = [item for part in parts_of(sections, Bullets) for item in part.items]
    return "\n".join([*(f"{part.lead} {part.text}" for part in parts_of(sections, Paragraph)), *bullets])


def test_figures_are_those_of_the_detections_and_the_annotation(run, found):
    content = found.content["evaluations"]["test"]
    one = judged(run)[0]
    detections = pd.read_parquet(run / "evaluation_test" / DETECTIONS_FILE)
    fresh = evaluate_detections(one.frames, detections, threshold=one.thresholds, resamples=RESAMPLES)
    assert list(content) == list(NETWORKS)
    for name, own in content.items():
        assert own["figures"] == {"parameters": 1000, **fresh[name]}
        # The curves draw as the evaluation did: their areas and intervals are figures of metrics.json.
        froc, precision = own["froc"], own["precision_recall"]
        assert [froc["area"], froc["area_low"], froc["area_high"]] == pytest.approx(
            [fresh[name]["froc_mean"], *fresh[name]["froc_mean_ci95"]], abs=1e-9
        )
        assert [precision["area"], precision["area_low"], precision["area_high"]] == pytest.approx(
            [fresh[name]["ap50"], *fresh[name]["ap50_ci95"]], abs=1e-9
        )
        assert sum(size["boxes"] for size in own["sizes"].values()) == fresh[name]["n_boxes"]
        # A threshold is a point of its curve, corner or not.
        assert fresh[name]["recall"] == np.interp(fresh[name]["false_positives_per_frame"], froc["x"], froc["y"])


def test_counts_at_the_threshold_add_up(run):
    one = judged(run)[0]
    table = operating_table(one)
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(table.columns[1:]) == ["teacher", "student 0", "student 1", "ensemble"]
    for place, name in enumerate(one.networks):
        boxes, found, missed, false = (
            int(rows[words][place]) for words in ("Annotated boxes", "… found", "… missed", "False alarms")
        )
        assert boxes == found + missed == one.figures[name]["n_boxes"]
        assert found + false == one.figures[name]["n_detections"]
        assert found / (found + false) == pytest.approx(one.figures[name]["precision"])
        assert rows["Sensitivity by box"][place].startswith(f"{found / boxes:.3f} (")


def test_a_page_has_what_a_study_of_detectors_needs(found):
    sections = found.sections
    titles = [section.title for section in sections]
    assert titles == [
        "Few sequences", "In short", "Cohort flow", "Performance", "Operating points",
        "Sensitivity by size of the polyp", "Sequences", "Calibration of scores", "Missed polyps and false alarms",
    ]  # fmt: skip
    names = [part.name for part in parts_of(sections, Picture)]
    assert names == ["froc_test.png", "precision_recall_test.png", "calibration_test.png"]
    assert len(parts_of(sections, Gallery)) == 1
    assert sections[0].banner
    assert "Only 9 polyp boxes and 3 sequences" in text_of(sections[:1])
    assert "AP50" in text_of(sections[1:2])


def test_the_page_is_written_and_says_names_as_text(tmp_path):
    hostile = "<script>alert(1)</script>"
    run = write_study(tmp_path, splits=SPLITS | {hostile: "test", "=HYPERLINK(1)": "test"})
    assert write_report(run, speed=False) == ["report.html", "report.json"]
    page = (run / "report.html").read_text()
    assert hostile not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "=HYPERLINK(1)" in page
    content = json.loads((run / "report.json").read_text())
    assert set(content["evaluations"]["test"]) == set(NETWORKS)
    assert content["task"] == "detection"


@pytest.mark.parametrize("named", [{"labels": ["x.csv"]}, {"by": ["sex"]}, {"temperature": True}])
def test_options_of_slides_are_refused(run, named):
    with pytest.raises(InputError, match="slides"):
        write_report(run, **named)


def external(run: Path, tmp_path: Path, *, record: bool = True) -> Path:
    """An evaluation of the run on another dataset."""
    data = write_frame_dataset(tmp_path / "other", splits={"Q0": "test", "Q1": "test"}, frames=3, seed=9)
    frames = pd.read_parquet(data / MANIFEST_FILE)
    folder = run / "evaluation_other"
    thresholds = {name: own["best_f1"] for name, own in rules_of_run(run).thresholds.items()}
    write_judged(folder, frames, made_up_detections(frames, seed=5), thresholds, split="test")
    if record:
        write_json(folder / "evaluation.json", {"dataset_dir": str(data)})
    return folder


def test_external_frames_stand_beside_the_test_frames_at_the_same_thresholds(run, tmp_path):
    found = report(run, external=[external(run, tmp_path)])
    assert list(found.content["evaluations"]) == ["test", "other"]
    frozen = parts_of([section for section in found.sections if section.title == "Operating points"], Table)[-1]
    assert [row[1] for row in frozen.rows[:2]] == ["Test split", "External: other"]
    for first, second in zip(frozen.rows[::2], frozen.rows[1::2], strict=True):
        assert first[0] == second[0]
        assert first[2] == second[2]


def test_figures_at_other_thresholds_than_the_runs_are_refused(run):
    path = run / "evaluation_test" / METRICS_FILE
    content = json.loads(path.read_text())
    content["thresholds"]["ensemble"] = 0.123
    write_json(path, content)
    with pytest.raises(InputError, match=r"threshold of ensemble is 0\.123.*Evaluate again"):
        judged(run)


def test_without_the_dataset_tables_stay_and_the_reason_is_said(tmp_path):
    run = write_study(tmp_path)
    shutil.rmtree(tmp_path / "data")
    found = report(run)
    assert not parts_of(found.sections, Picture)
    assert not parts_of(found.sections, Gallery)
    text = text_of(found.sections)
    assert "No pictures: " in text
    assert str(tmp_path / "data") in text
    tables = parts_of(found.sections, Table)
    assert any("AP50" in table.columns for table in tables)
    assert any(table.filterable for table in tables)
    assert found.content["evaluations"]["test"]["ensemble"]["froc"] is None


def test_frames_that_were_changed_since_are_not_shown(run, tmp_path):
    folder = external(run, tmp_path)
    write_frame_dataset(tmp_path / "other", splits={"Q0": "test", "Q1": "test"}, frames=5, seed=9)
    one = judged(run, external=[folder])[1]
    assert one.frames is None
    assert "changed since" in one.without_frames


def test_shards_that_are_gone_leave_the_rest_of_the_page(tmp_path):
    run = write_study(tmp_path)
    shutil.rmtree(tmp_path / "data" / "shards")
    found = report(run)
    assert not parts_of(found.sections, Gallery)
    assert "No pictures: frame" in text_of(found.sections)
    assert len(parts_of(found.sections, Picture)) == 3


def test_a_run_that_was_not_tested_warns_that_its_figures_are_too_good(tmp_path):
    run = write_study(tmp_path, splits={"P0": "train", "P1": "val", "P2": "val"})
    found = report(run)
    assert list(found.content["evaluations"]) == ["validation"]
    text = text_of(found.sections)
    assert "Validation only. This run was not evaluated on test frames yet" in text
    assert "chosen on these very frames" in text


def rewrite(run: Path, change) -> None:
    """Evaluate the test split again with changed frames or detections."""
    folder = run / "evaluation_test"
    one = judged(run)[0]
    frames, detections = change(one.frames.copy(), pd.read_parquet(folder / DETECTIONS_FILE))
    write_judged(folder, frames, detections, one.thresholds, split="test")


def test_a_network_whose_scores_are_no_numbers_has_dashes(run):
    def broken(frames, detections):
        return frames, detections.assign(score=detections["score"].mask(detections["network"] == "student_1"))

    rewrite(run, broken)
    found = report(run)
    assert "Scores of student 1 are no numbers" in text_of(found.sections)
    rows = parts_of([section for section in found.sections if section.title == "Operating points"], Table)[0].rows
    assert all(row[3] == "–" for row in rows if row[0] != "Threshold")
    assert all("nan" not in cell for row in rows for cell in row)
    assert found.content["evaluations"]["test"]["student_1"]["froc"]["area"] is None


def section(found, title):
    (own,) = [one for one in found.sections if one.title == title]
    return own


TABLES = ("Performance", "Operating points", "Sensitivity by size of the polyp")


def test_intervals_without_width_are_explained_below_each_table_of_them(run):
    def right(frames, detections):
        rows = [
            (frame["sample_id"], frame["sequence_id"], frame["patient_id"], network, 0.9, *box)
            for _, frame in frames.iterrows()
            for network in NETWORKS
            for box in frame["boxes"]
        ]
        return frames, pd.DataFrame(rows, columns=detections.columns)

    rewrite(run, right)
    found = report(run)
    for title in TABLES:
        text = text_of([section(found, title)])
        assert text.count("An interval without width: no resample differs") == 1, title


def test_intervals_with_a_width_are_not(run):
    path = run / "evaluation_test" / METRICS_FILE
    content = read_json(path, remedy="")
    for own in content["networks"].values():
        own |= {name: [0.1, 0.9] for name in own if name.endswith("_ci95")}
    write_json(path, content)
    found = report(run)
    assert "without width" not in text_of([section(found, title) for title in TABLES[:2]])


def validated(run: Path, change) -> None:
    """Validate again with changed detections, and evaluate the test split at the new thresholds."""
    one, study = judged(run)[0], read_study(run)
    rows = study.dataset.manifest[(study.dataset.split == "val").to_numpy()].reset_index(drop=True)
    detections = change(pd.read_parquet(run / DETECTIONS_FILE))
    thresholds = choose_thresholds(rows, detections, networks=NETWORKS)
    write_judged(run, rows, detections, thresholds, split="val", best_epoch=2)
    tested = pd.read_parquet(run / "evaluation_test" / DETECTIONS_FILE)
    write_judged(run / "evaluation_test", one.frames, tested, thresholds, split="test")


def test_what_thresholds_hang_on_is_cautioned_where_they_are_used(run):
    found = section(report(run), "Operating points")
    assert "from the score with the best F1 on the validation split of the training" in text_of([found])
    cautions = [part.text for part in found.parts if isinstance(part, Paragraph) and part.lead == "Caution."]
    assert cautions == list(rules_of_run(run).problems)
    assert "have 6 annotated boxes: thresholds that hang on so few" in cautions[0]


@pytest.mark.parametrize("lost", [["student_1"], list(NETWORKS)])
def test_a_threshold_that_validation_could_not_choose_is_not_called_chosen(run, monkeypatch, lost):
    marked = {}
    monkeypatch.setattr(sections, "draw_froc", lambda curves, points: marked.update(points))
    validated(run, lambda detections: detections[~detections["network"].isin(lost)])
    found = report(run)
    text = text_of([section(found, "Operating points")])
    assert text.count("no threshold could be chosen for it, and a score of 0.5 is taken") == len(lost)
    if len(lost) == 1:
        assert "from the score with the best F1" in text
        assert "; of student 1 from 0.5, because none could be chosen" in text
    else:
        assert "best F1" not in text
        assert "could not be chosen on its validation split" in text_of([section(found, "In short")])
    words = {name: every[0][0] for name, every in marked.items()}
    assert {name for name, said in words.items() if said == "threshold 0.5, none chosen"} == set(lost)
    assert {words[name] for name in set(words) - set(lost)} <= {"threshold chosen on validation"}


def test_frames_of_normal_colonoscopies_have_known_counts_and_no_precision(run, tmp_path):
    folder = external(run, tmp_path)
    data = tmp_path / "other"
    frames = pd.read_parquet(data / MANIFEST_FILE)
    frames = frames.assign(boxes=[[] for _ in range(len(frames))], label="negative")
    detections = pd.read_parquet(folder / DETECTIONS_FILE)
    thresholds = {name: own["best_f1"] for name, own in rules_of_run(run).thresholds.items()}
    write_judged(folder, frames, detections, thresholds, split="test")
    one = judged(run, external=[folder])[1]
    rows = {row[0]: row[1:] for row in operating_table(one).rows}
    for place, name in enumerate(one.networks):
        assert [rows[words][place] for words in ("Annotated boxes", "… found", "… missed")] == ["0", "0", "0"]
        assert int(rows["False alarms"][place]) == one.figures[name]["n_detections"] > 0
    assert "Precision" not in rows
    assert {row[4] for row in frozen_table([one]).rows} == {"–"}
    reasons = " ".join(undefined_at_threshold(one))
    assert "No frame has an annotated polyp" in reasons
    assert "Boxes are not known" not in reasons
    broken = detections.assign(score=detections["score"].mask(detections["network"] == "teacher"))
    write_judged(folder, frames, broken, thresholds, split="test")
    one = judged(run, external=[folder])[1]
    assert {row[0]: row[1] for row in operating_table(one).rows}["False alarms"] == "–"
    assert "Scores of teacher are no numbers" in " ".join(undefined_at_threshold(one))


def test_nothing_detected_is_no_failure(run):
    rewrite(run, lambda frames, detections: (frames, detections.iloc[:0]))
    found = report(run)
    own = found.content["evaluations"]["test"]["ensemble"]["figures"]
    assert (own["recall"], own["precision"]) == (0.0, None)
    assert len(parts_of(found.sections, Gallery)) == 1


def test_frames_without_any_polyp_have_false_alarms_only(tmp_path):
    run = write_study(tmp_path, frames=1)  # frame 0 has no polyp
    found = report(run)
    text = text_of(found.sections)
    assert "No frame has an annotated polyp" in text
    rows = {row[0]: row for row in parts_of(found.sections[4:5], Table)[0].rows}
    assert rows["False alarms per frame without polyp"][1] != "–"
    assert "Sensitivity by box" not in rows
    assert math.isnan(collect_figures(judged(run)[0]).froc["ensemble"].area)


def test_flow_counts_frames_boxes_and_reasons(run):
    table, text, *_ = flow_section(read_study(run)).parts
    assert isinstance(table, Table)
    rows = {row[0]: row[1:] for row in table.rows}
    # Of frames 0 to 3 of each patient, 0 and 3 have no polyp, 1 has one, 2 has two.
    assert rows["training"] == ["1", "1", "4", "2", "2", "3", "–", "0"]
    assert rows["validation"] == ["2", "2", "8", "4", "4", "6", "–", "0"]
    assert rows["test"] == ["3", "3", "12", "6", "6", "9", "–", "0"]
    assert isinstance(text, Paragraph)


def test_flow_names_what_preparation_left_out(tmp_path):
    run = write_study(tmp_path)
    (tmp_path / "data" / "failures.csv").write_text("input,reason\nx.jpg,cut short\n")
    parts = flow_section(read_study(run)).parts
    assert "1 input" in "\n".join(part.text for part in parts if isinstance(part, Paragraph))
    assert [list(part.rows) for part in parts if isinstance(part, Table)][-1] == [["x.jpg", "cut short"]]


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("frame", "12 frames (patients and sequences not known)"),
        ("sequence", "12 frames of 3 sequences (patients not known)"),
        ("patient", "12 frames of 3 sequences of 3 patients"),
    ],
)
def test_the_summary_says_whose_frames_they_are_as_far_as_that_is_known(run, unit, words):
    path = run / "evaluation_test" / METRICS_FILE
    content = read_json(path, remedy="")
    content["bootstrap"]["unit"] = unit
    write_json(path, content)
    (summary,) = [section for section in report(run).sections if section.title == "In short"]
    assert words in text_of([summary])


def test_the_table_of_sequences_begins_with_the_worst_and_has_an_end(run):
    one = judged(run)[0]
    many = pd.concat([one.sequences] * (MOST_SEQUENCES // len(one.sequences) + 1), ignore_index=True)
    object.__setattr__(one, "sequences", many)
    table = sequences_table(one)
    assert len(table.rows) == MOST_SEQUENCES
    assert table.sortable
    assert table.filterable
    shown = [float(row[table.columns.index("ensemble: found")]) for row in table.rows]
    assert shown == sorted(shown)
