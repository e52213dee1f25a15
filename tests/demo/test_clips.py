"""Generated clips: boxes are the bounds of the masks, the same seed gives the same bytes, and nothing is mixed up."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kdml_med.colonoscopy.video import write_video
from kdml_med.demo.clips import COLUMNS, VIDEO_LENGTH, mask_boxes, sequence_role, write_demo_clips
from kdml_med.errors import InputError

SEQUENCES, FRAMES = 6, 2


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "clips"
    return write_demo_clips(out, sequences=SEQUENCES, frames=FRAMES, workers=1, progress=False)


@pytest.fixture(scope="module")
def table(cohort: Path) -> pd.DataFrame:
    return pd.read_csv(cohort / "annotations.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_boxes_are_the_half_open_bounds_of_the_masks(cohort: Path, table: pd.DataFrame) -> None:
    assert list(table.columns) == COLUMNS
    assert table.image.nunique() == SEQUENCES * FRAMES
    for image, rows in table.groupby("image"):
        with Image.open(cohort / "masks" / str(image).replace(".jpg", ".png")) as picture:
            mask = np.asarray(picture)
        with Image.open(cohort / "frames" / str(image)) as frame:
            assert mask.shape == (frame.height, frame.width) == (256, 320)
        values = set(np.unique(mask)) - {0}
        assert len(values) == rows.xmin.notna().sum()
        for row in rows[rows.xmin.notna()].itertuples():
            inside = mask == int(row.polyp.rpartition("-")[2])
            xmin, ymin, xmax, ymax = (int(edge) for edge in (row.xmin, row.ymin, row.xmax, row.ymax))
            assert inside.sum() == inside[ymin:ymax, xmin:xmax].sum() > 0
            assert inside[ymin, :].any()
            assert inside[ymax - 1, :].any()
            assert inside[:, xmin].any()
            assert inside[:, xmax - 1].any()


def test_mask_boxes_of_a_known_mask() -> None:
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[2:5, 3:9] = 1
    mask[9, 19] = 2
    assert mask_boxes(mask) == {1: (3, 2, 9, 5), 2: (19, 9, 20, 10)}


def test_a_frame_without_polyps_has_one_row_with_empty_cells(table: pd.DataFrame) -> None:
    empty = table[table.xmin.isna()]
    assert len(empty) >= 2 * FRAMES
    assert empty.image.is_unique
    assert empty[["ymin", "xmax", "ymax", "polyp"]].isna().all().all()
    assert not set(empty.image) & set(table.image[table.xmin.notna()])


def test_each_polyp_belongs_to_one_sequence_and_each_sequence_to_one_patient(table: pd.DataFrame) -> None:
    assert table[table.polyp.notna()].groupby("polyp").sequence.nunique().max() == 1
    assert table.groupby("sequence").patient.nunique().max() == 1
    assert table.groupby("patient").sequence.nunique().max() == 2


def test_every_six_sequences_hold_a_patient_without_polyps() -> None:
    roles = [sequence_role(5, index) for index in range(60)]
    assert len({role.sequence for role in roles}) == 60
    for start in range(0, 60, 6):
        block = roles[start : start + 6]
        assert sum(role.polyps > 0 for role in block) == 4
        by_patient = {role.patient: sum(r.polyps for r in block if r.patient == role.patient) for role in block}
        assert len(by_patient) == 4
        assert list(by_patient.values()).count(0) == 1
    assert {role.polyps for role in roles} == {0, 1, 2}


def test_truth_names_the_polyps_of_the_table(cohort: Path, table: pd.DataFrame) -> None:
    for path in (cohort / "truth").glob("*.json"):
        truth = json.loads(path.read_text())
        rows = table[table.sequence == truth["sequence"]]
        shown = rows.groupby("polyp").size().to_dict()
        assert shown == {p["polyp"]: p["visible_frames"] for p in truth["polyps"] if p["visible_frames"]}


def test_deleted_parts_come_back_with_the_same_bytes_for_any_number_of_workers(cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cohort, copy)
    (copy / "frames" / "DEMO-0001-A" / "0002.jpg").unlink()
    (copy / "masks" / "DEMO-0004-B" / "0002.png").unlink()
    (copy / "videos" / "demo_clip.mp4").unlink()
    (copy / "annotations.csv").unlink()
    kept = copy / "frames" / "DEMO-0002-A" / "0001.jpg"
    before = kept.stat().st_mtime_ns
    write_demo_clips(copy, sequences=SEQUENCES, frames=FRAMES, workers=2, progress=False)
    assert contents(copy) == contents(cohort)
    assert kept.stat().st_mtime_ns == before


def test_more_sequences_leave_the_first_ones_as_they_are(cohort: Path) -> None:
    assert [sequence_role(0, index) for index in range(SEQUENCES)] == sorted(
        sequence_role(0, index) for index in range(SEQUENCES)
    )
    names = {path.name for path in (cohort / "frames").iterdir()}
    assert names == {sequence_role(0, index).sequence for index in range(SEQUENCES)}
    assert sequence_role(0, SEQUENCES).sequence not in names


def test_the_video_holds_the_frames_that_its_boxes_are_about(cohort: Path) -> None:
    with av.open(str(cohort / "videos" / "demo_clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == VIDEO_LENGTH * FRAMES
    assert frames[0].shape == (256, 320, 3)
    boxes = pd.read_csv(cohort / "videos" / "demo_clip.csv")
    assert set(boxes.frame) == set(range(VIDEO_LENGTH * FRAMES))
    assert boxes.xmin.notna().any()


def test_a_video_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    frames = [np.random.default_rng(n).integers(0, 255, (64, 96, 3), dtype=np.uint8) for n in range(5)]
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, frames, rate=10)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one.mp4", "two.mp4"]


@pytest.mark.parametrize(
    "arguments", [{"sequences": 5}, {"sequences": 10_000}, {"frames": 1}, {"seed": -1}, {"workers": -1}]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        write_demo_clips(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_another_cohort_is_not_completed(cohort: Path) -> None:
    before = contents(cohort)
    for other in ({"seed": 1}, {"frames": FRAMES + 1}, {"sequences": SEQUENCES + 1}):
        with pytest.raises(InputError, match="choose another --out"):
            write_demo_clips(cohort, **{"sequences": SEQUENCES, "frames": FRAMES, **other})
    assert contents(cohort) == before
