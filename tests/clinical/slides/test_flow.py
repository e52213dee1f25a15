"""Who is in a dataset, and what was left out of it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from kdml_med.clinical.slides.counting import Exclusion, Flow, Group, count_flow
from kdml_med.clinical.slides.flow_chart import draw_flow
from kdml_med.clinical.study import read_dataset
from kdml_med.storage.manifest import MANIFEST_FILE, read_info, read_manifest, write_info, write_manifest
from tests.clinical.studies import write_placed_dataset


def test_patients_slides_and_tiles_are_counted_by_split(tmp_path: Path) -> None:
    data = read_dataset(write_placed_dataset(tmp_path / "tiles"), None)
    flow = count_flow(data)
    assert data.split is not None
    assert [group.name for group in flow.groups] == ["training", "validation", "test", "all"]
    for group, split in zip(flow.groups, ("train", "val", "test"), strict=False):
        assert group.rows == (data.split == split).sum()
        assert group.patients == group.groups == group.rows // 4
        assert sum(group.classes.values()) == group.patients
    every = flow.groups[-1]
    assert (every.patients, every.groups, every.rows, every.unlabelled) == (24, 24, 96, 0)
    assert every.classes == {"MSS": 12, "MSI": 12}
    assert flow.failures == [("torn.svs", "cannot be read")]


def test_what_was_left_out_has_a_reason_and_a_number(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path / "tiles")
    manifest = read_manifest(folder)
    manifest.loc[manifest["patient_id"] == "P03", "label"] = None
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(manifest, preserve_index=False))
    info = read_info(folder)
    info.labels = {"table": "labels.csv", "rows": {"all": 31, "used": 24, "no_class": 4, "no_file": 3}}
    write_info(folder, info)
    flow = count_flow(read_dataset(folder, None))
    assert flow.candidates == 31
    assert flow.exclusions == [
        Exclusion("rows of the label table", "the label table gives no class", 4),
        Exclusion("rows of the label table", "no file was there", 3),
        Exclusion("tiles", "too little tissue", 48),
        Exclusion("tiles", "without a class: neither learned from nor judged", 4),
    ]


def test_patients_of_both_classes_or_none_count_once(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path / "tiles")
    manifest = read_manifest(folder)
    manifest.loc[manifest.index[0], "label"] = "MSI"
    manifest.loc[manifest["patient_id"] == "P01", "label"] = None
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(manifest, preserve_index=False))
    every = count_flow(read_dataset(folder, None)).groups[-1]
    assert (every.patients, every.classes) == (24, {"MSS": 11, "MSI": 11, "both": 1, "without a class": 1})


def test_slides_are_not_called_patients_where_nothing_says_whose_they_are(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path / "tiles")
    manifest = read_manifest(folder)
    unknown = manifest.assign(slide_id=manifest["patient_id"])
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(unknown, preserve_index=False))
    data = read_dataset(folder, None)
    flow = count_flow(data)
    assert flow.owner == "slide"
    texts = [text.get_text() for text in draw_flow(flow, group="slide", row="tile", table="t").axes[0].texts]
    assert "24 slides (12 MSS, 12 MSI)" in texts
    assert "96 tiles" in texts
    assert not any("patient" in text for text in texts)
    info = read_info(folder)
    info.labels = {"columns": {"patient": "case"}, "rows": {}}
    write_info(folder, info)
    assert count_flow(read_dataset(folder, None)).owner == "patient"


@pytest.mark.parametrize("candidates", [None, 31])
@pytest.mark.parametrize("splits", [0, 1, 3])
@pytest.mark.parametrize("reasons", [0, 1, 12])
def test_the_chart_says_every_number_within_its_frame(candidates: int | None, splits: int, reasons: int) -> None:
    names = ["training", "validation", "test"][:splits]
    groups = [Group(name, 7, 8, 1234, {"$MSS$": 3, "a" * 90: 4}, 0) for name in [*names, "all"]]
    exclusions = [Exclusion("tiles", f"reason {number}", 1000 + number) for number in range(reasons)]
    flow = Flow("patient", candidates, groups, exclusions, [("torn.svs", "cannot be read")] * 2)
    figure = draw_flow(flow, group="slide", row="tile", table="labels.csv")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum("8 slides, 1,234 tiles" in text for text in texts) == splits + 1
    assert any("2 inputs: not or not wholly usable" in text for text in texts)
    assert ("labels.csv: 31 rows" in texts) == (candidates is not None)
    assert sum("reason " in text for text in texts) == min(reasons, 7)
    assert ("and 5 more reasons" in texts) == (reasons == 12)
    figure.draw_without_rendering()
    frame = figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        assert box.x1 <= frame.x1
