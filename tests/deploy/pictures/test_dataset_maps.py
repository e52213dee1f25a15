"""Maps of the slides of a dataset folder, from its stored tiles alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from kdml_med.data import NormalizeColourd, TileDataset
from kdml_med.deploy.pictures import dataset_maps
from kdml_med.deploy.pictures.dataset_maps import read_slide_sizes, tile_table, write_dataset_maps
from kdml_med.deploy.pictures.heatmap import SlidePicture
from kdml_med.errors import InputError
from kdml_med.storage.manifest import MANIFEST_FILE, SLIDES_FILE, TILE_COLUMNS, read_manifest, write_manifest
from kdml_med.wsi.shards import BOUNDS_COLUMNS
from tests.networks.tiny import StagedNet, TinyNet
from tests.synthetic_tiles import CLASSES, write_tile_dataset

FILES = ["disagreement.png", "heatmap.ome.tiff", "heatmap.png", "tiles.geojson", "tiles_bottom.png", "tiles_top.png"]


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    """Two slides of six tiles of 32 px, which cover 64 level-0 pixels each: two rows, and the last one further down."""
    folder = write_tile_dataset(tmp_path / "tiles", patients=2, tiles=6, labelled=False)
    rows = read_manifest(folder)
    number = np.arange(len(rows)) % 6
    rows["x_l0"], rows["y_l0"], rows["size_l0"] = number % 3 * 64, number // 3 * 64 + (number == 5) * 64, 64.0
    write_manifest(folder / MANIFEST_FILE, pa.Table.from_pandas(rows, TILE_COLUMNS, preserve_index=False))
    slides = pd.DataFrame({"slide_id": ["S00", "S01"], "width_l0": 200, "height_l0": 260, "mpp": 0.5})
    slides.to_csv(folder / SLIDES_FILE, index=False)
    return folder


def open_dataset(folder: Path) -> TileDataset:
    return TileDataset(folder, transform=NormalizeColourd("image"))


def predictions_of(dataset: TileDataset, networks: tuple[str, ...]) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    parts = [dataset.rows.assign(network=name, probability=generator.random(len(dataset))) for name in networks]
    return pd.concat(parts)[["sample_id", "slide_id", "patient_id", "network", "label", "probability"]]


def students(build: type[nn.Module] = StagedNet) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {f"student_{number}": build(2).eval() for number in range(2)}


NAMES = ("student_0", "student_1", "ensemble")


def test_every_slide_gets_its_maps_and_sheets(dataset_dir: Path, tmp_path: Path) -> None:
    dataset = open_dataset(dataset_dir)
    found = predictions_of(dataset, NAMES)
    said = write_dataset_maps(tmp_path / "out", dataset, found, students(), classes=CLASSES, synthetic=False)
    assert "Maps of 2 slides" in said
    for name in ("S00", "S01"):
        assert sorted(path.name for path in (tmp_path / "out/slides" / name).iterdir()) == FILES
    text = (tmp_path / "out/slides/S00/tiles.geojson").read_text()
    assert "Generated data" in text, "the dataset is generated, even if the run is not"
    assert text.count('"Feature"') == 6
    table = pd.read_parquet(tmp_path / "out/tiles.parquet")
    wide = found.pivot(index="sample_id", columns="network", values="probability").loc[table["sample_id"]]
    for name in NAMES:
        np.testing.assert_array_equal(table[f"probability_{name}"], wide[name].astype(np.float32))
    np.testing.assert_allclose(table["disagreement"], (wide["student_0"] - wide["student_1"]).abs(), atol=1e-7)


def test_the_overview_is_put_together_from_the_tiles(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[SlidePicture] = []
    monkeypatch.setattr(dataset_maps, "write_maps", lambda _folder, picture: pictures.append(picture))
    dataset = open_dataset(dataset_dir)
    found = predictions_of(dataset, NAMES)
    write_dataset_maps(tmp_path, dataset, found, students(), classes=CLASSES, synthetic=False)
    overview = pictures[0].overview
    assert overview.shape == (130, 100, 3)  # no finer than the tiles are stored
    assert pictures[0].downsample == 2
    for position in range(5):
        x, y = (int(dataset.rows[name].iloc[position]) // 2 for name in ("x_l0", "y_l0"))
        stored = dataset.read(position)[:, : 100 - x]  # the slide ends within the last column
        np.testing.assert_array_equal(overview[y : y + 32, x : x + 32], stored)
    np.testing.assert_array_equal(overview[64:, :64], 245, "glass, or tissue that no tile shows")


def test_shapes_are_counted_from_the_corner_that_the_table_of_slides_names(dataset_dir: Path, tmp_path: Path) -> None:
    path = dataset_dir / SLIDES_FILE
    bounds = pd.DataFrame([(0, 0, 200, 260), (64, 32, 100, 200)], columns=BOUNDS_COLUMNS)
    pd.concat([pd.read_csv(path), bounds], axis=1).to_csv(path, index=False)
    dataset = open_dataset(dataset_dir)
    found = predictions_of(dataset, NAMES)
    write_dataset_maps(tmp_path, dataset, found, students(), classes=CLASSES, synthetic=False)
    for name, corner in (("S00", (0, 0)), ("S01", (64, 32))):
        content = json.loads((tmp_path / "slides" / name / "tiles.geojson").read_text())
        corners = [one["geometry"]["coordinates"][0][0] for one in content["features"]]
        own = dataset.rows[dataset.rows["slide_id"] == name]
        np.testing.assert_array_equal(corners, own[["x_l0", "y_l0"]].to_numpy() - corner)
    assert read_slide_sizes(path)["S00"].bounds is None


def test_networks_without_stages_give_sheets_without_grad_cam(dataset_dir: Path, tmp_path: Path) -> None:
    dataset = open_dataset(dataset_dir)
    found = predictions_of(dataset, NAMES)
    for build in (StagedNet, TinyNet):
        write_dataset_maps(tmp_path / build.__name__, dataset, found, students(build), classes=CLASSES, synthetic=True)
    widths = []
    for name in ("StagedNet", "TinyNet"):
        with Image.open(tmp_path / name / "slides/S00/tiles_top.png") as image:
            widths.append(image.width)
    assert widths[0] > widths[1]


def test_one_student_does_not_disagree(dataset_dir: Path) -> None:
    dataset = open_dataset(dataset_dir)
    table = tile_table(dataset.rows, predictions_of(dataset, ("student_0", "ensemble", "teacher")))
    assert table["disagreement"].isna().all()
    assert list(table)[-3:] == ["probability_teacher", "probability_student_0", "disagreement"], "nor is it an ensemble"


def test_imported_tiles_have_no_maps_and_it_is_said(tmp_path: Path) -> None:
    dataset = open_dataset(write_tile_dataset(tmp_path / "tiles", patients=2, labelled=False))
    found = predictions_of(dataset, NAMES)
    said = write_dataset_maps(tmp_path / "out", dataset, found, students(), classes=CLASSES, synthetic=False)
    assert said.startswith("No maps: the tiles of this dataset were imported")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"), [("S01", "S07", "has no slide 'S01'"), ("260", "tall", "slides.csv"), ("mpp", "m", "mpp")]
)
def test_a_damaged_table_of_slides_is_named(dataset_dir: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    path = dataset_dir / SLIDES_FILE
    path.write_text(path.read_text().replace(old, new))
    dataset = open_dataset(dataset_dir)
    with pytest.raises(InputError, match=words):
        write_dataset_maps(
            tmp_path, dataset, predictions_of(dataset, NAMES), students(), classes=CLASSES, synthetic=False
        )
