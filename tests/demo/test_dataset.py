"""The generated clips as a dataset folder."""

from pathlib import Path

import pandas as pd
import pytest

from kdml_med.demo.dataset import LEAST_BOX_PX, ensure_demo_frames
from kdml_med.errors import InputError
from kdml_med.storage.manifest import read_info, read_manifest


@pytest.mark.slow
def test_clips_become_a_dataset_with_every_box_and_frozen_splits_once(tmp_path: Path) -> None:
    dataset = tmp_path / "polyp"
    ensure_demo_frames(dataset, sequences=12, frames=3, workers=1)
    info, manifest = read_info(dataset), read_manifest(dataset)
    table = pd.read_csv(tmp_path / "polyp_clips" / "annotations.csv")
    assert info.synthetic
    assert info.splits is not None
    assert len(manifest) == table.image.nunique() == 36
    assert manifest.boxes.map(len).sum() == table.xmin.notna().sum()
    sides = [min(b[2] - b[0], b[3] - b[1]) for boxes in manifest.boxes for b in boxes]
    assert min(sides) > LEAST_BOX_PX
    # The margin with its text is cut off.
    assert (manifest.crop_x > 35).all()
    splits = pd.read_csv(dataset / "splits.csv").set_index("patient_id").split
    for split in ("train", "val", "test"):
        labels = manifest.label[manifest.patient_id.map(splits) == split]
        assert set(labels) == {"polyp", "negative"}
    before = (dataset / "dataset.json").stat().st_mtime_ns
    ensure_demo_frames(dataset, sequences=12, frames=3, workers=1)
    assert (dataset / "dataset.json").stat().st_mtime_ns == before


def test_the_place_of_the_demo_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"schema_version": 1, "kind": "tiles", "synthetic": true}')
    with pytest.raises(InputError, match="move it away"):
        ensure_demo_frames(tmp_path)
