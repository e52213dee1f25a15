"""Maps of the slides of a dataset folder: the overview of each is put together from its stored tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import nn

from kdml_med.data.tiles import TileDataset
from kdml_med.deploy.pictures.grad_cam import explain
from kdml_med.deploy.pictures.heatmap import SlidePicture, write_maps
from kdml_med.deploy.pictures.tile_sheet import SHEET_TILES, SheetTile, choose_tiles, write_tile_sheets
from kdml_med.deploy.slides.prediction_folder import PROBABILITY, SLIDES_DIR, TILES_FILE, discard_slide, slide_dir
from kdml_med.deploy.slides.prediction_tables import with_disagreement
from kdml_med.errors import InputError
from kdml_med.keys import BatchKey, NetworkName, network_order
from kdml_med.program import progress_bar
from kdml_med.storage.files import write_parquet
from kdml_med.storage.manifest import SLIDES_FILE
from kdml_med.storage.reading import damaged, read_table
from kdml_med.words import counted
from kdml_med.wsi.shards import BOUNDS_COLUMNS
from kdml_med.wsi.slide import Bounds

_LONGEST_PX = 1600
_BARE = 245
"""Grey of the overview where no tile is stored."""
_REMEDY = "Make the dataset again."
_PLACE = ["sample_id", "patient_id", "slide_id", "x_l0", "y_l0", "size_l0", "mpp", "tissue_fraction"]


class SlideSize(NamedTuple):
    """What slides.csv says of a slide; level-0 pixels, and micrometres per such pixel.

    ``bounds`` is the part of the plane that was scanned, None where it is all of it or not known.
    """

    width_l0: int
    height_l0: int
    mpp: float
    bounds: Bounds | None = None


def write_dataset_maps(
    output_dir: Path,
    dataset: TileDataset,
    predictions: pd.DataFrame,
    networks: Mapping[str, nn.Module],
    *,
    network: str = NetworkName.ENSEMBLE.value,
    classes: Sequence[str],
    synthetic: bool,
    device: str = "cpu",
) -> str:
    """Write tiles.parquet, and for each slide a folder of maps and tile sheets.

    Args:
        output_dir: gets tiles.parquet and slides/<slide_id>/.
        dataset: gives the tiles; its transform normalises them as the networks want it.
        predictions: columns of ``PredictionColumn``, with the ensemble.
        networks: those by name that Grad-CAM looks into: the one whose maps are drawn, or all students.
        network: whose maps are drawn.
        classes: names; the last one is the positive class.
        synthetic: the networks were trained on generated data; so may the dataset be.
        device: where the networks are.

    Returns:
        What was done, one line for a person; where the dataset has no positions, that there are no maps.

    Raises:
        InputError: slides.csv or a tile cannot be read, or a file cannot be written.
    """
    if dataset.rows[["x_l0", "y_l0", "size_l0"]].isna().any(axis=None):
        return "No maps: the tiles of this dataset were imported, and nothing says where in their slides they lie."
    slides = read_slide_sizes(dataset.dataset_dir / SLIDES_FILE)
    missing = sorted(set(dataset.rows["slide_id"].unique()) - set(slides))
    if missing:
        raise InputError(f"{dataset.dataset_dir / SLIDES_FILE} has no slide {missing[0]!r}, which has tiles. {_REMEDY}")
    tiles = tile_table(dataset.rows, predictions)
    write_parquet(output_dir / TILES_FILE, tiles)
    groups = tiles.groupby("slide_id", sort=False)
    with progress_bar(groups.ngroups, what="maps", unit="slide") as bar:
        for name, own in groups:
            slide_id = str(name)
            overview, downsample = mosaic(dataset, own, slides[slide_id])
            picture = SlidePicture(
                slide_id=slide_id,
                overview=overview,
                downsample=downsample,
                **slides[slide_id]._asdict(),
                tiles=own.assign(probability=own[f"{PROBABILITY}{network}"]),
                classes=list(classes),
                network=network,
                synthetic=synthetic or dataset.info.synthetic,
            )
            folder = slide_dir(output_dir, slide_id)
            write_maps(folder, picture)
            _write_sheets(folder, picture, dataset, list(networks.values()), device)
            bar.update()
    return f"Maps of {counted(groups.ngroups, 'slide')}: {output_dir / SLIDES_DIR}."


def discard_maps(output_dir: Path) -> None:
    """Delete what an earlier call of ``write_dataset_maps`` wrote, perhaps of another dataset."""
    (output_dir / TILES_FILE).unlink(missing_ok=True)
    for folder in (output_dir / SLIDES_DIR).glob("*"):
        discard_slide(output_dir, folder.name)


def tile_table(rows: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Rows of tiles.parquet, as a prediction of slides has them: one student is no ensemble.

    Args:
        rows: of the manifest; the result has its order and its index.
        predictions: columns of ``PredictionColumn``.
    """
    wide = predictions.pivot(index="sample_id", columns="network", values="probability").loc[rows["sample_id"]]
    table: pd.DataFrame = rows[_PLACE].astype({"patient_id": "str", "slide_id": "str"})
    students = set(wide) - {NetworkName.TEACHER, NetworkName.ENSEMBLE}
    for name in sorted(map(str, wide), key=network_order):
        if name != NetworkName.ENSEMBLE or len(students) > 1:
            table[f"{PROBABILITY}{name}"] = wide[name].to_numpy(np.float32)
    return with_disagreement(table)


def read_slide_sizes(path: Path) -> dict[str, SlideSize]:
    """How large each slide of slides.csv is.

    Raises:
        InputError: the file is missing or damaged.
    """
    columns = ["slide_id", "width_l0", "height_l0", "mpp"]
    table = read_table(path, columns, remedy=_REMEDY)
    columns += BOUNDS_COLUMNS if set(BOUNDS_COLUMNS) <= set(table.columns) else []
    with damaged(path, remedy=_REMEDY):
        table = table[columns].astype(dict.fromkeys(columns[1:], int) | {"mpp": float})
    sizes = {}
    for name, width, height, mpp, *bounds in table.itertuples(index=False):
        whole = not bounds or bounds == [0, 0, width, height]
        sizes[str(name)] = SlideSize(width, height, mpp, None if whole else Bounds(*bounds))
    return sizes


def mosaic(
    dataset: TileDataset, tiles: pd.DataFrame, slide: SlideSize, *, longest_px: int = _LONGEST_PX
) -> tuple[npt.NDArray[np.uint8], float]:
    """Overview, uint8, [height, width, 3], and level-0 pixels per pixel of it.

    Args:
        dataset: gives the pixels by position.
        tiles: of the slide, at least one; their index is the position in the dataset.
        slide: whose tiles they are.
        longest_px: of the overview at most.

    Raises:
        InputError: a tile cannot be read.
    """
    finest = tiles["size_l0"].min() / dataset.read(tiles.index[0]).shape[0]  # no finer than what is stored
    downsample = max(max(slide.width_l0, slide.height_l0) / longest_px, finest)
    size = max(1, round(slide.width_l0 / downsample)), max(1, round(slide.height_l0 / downsample))
    canvas = Image.new("RGB", size, (_BARE,) * 3)
    for position, x, y, side in zip(tiles.index, tiles["x_l0"], tiles["y_l0"], tiles["size_l0"], strict=True):
        left, top, right, bottom = (round(edge / downsample) for edge in (x, y, x + side, y + side))
        shape = max(1, right - left), max(1, bottom - top)
        image = Image.fromarray(dataset.read(position))
        canvas.paste(image.resize(shape, Image.Resampling.BOX, reducing_gap=2.0), (left, top))
    return np.asarray(canvas), downsample


def _write_sheets(
    folder: Path, picture: SlidePicture, dataset: TileDataset, networks: Sequence[nn.Module], device: str
) -> None:
    def sheet(places: Sequence[int], looked_for: int) -> list[SheetTile]:
        chosen = picture.tiles.iloc[list(places)]
        images = [dataset[position][BatchKey.IMAGE] for position in chosen.index]
        cams = explain(networks, torch.stack(images).to(device), looked_for) if images else []
        columns: Any = zip(chosen.index, chosen["probability"], chosen["x_l0"], chosen["y_l0"], cams, strict=True)
        return [
            SheetTile(image=dataset.read(position), probability=probability, x_l0=x, y_l0=y, cam=cam)
            for position, probability, x, y, cam in columns
        ]

    top, bottom = choose_tiles(picture.tiles["probability"].to_numpy(), SHEET_TILES)
    write_tile_sheets(
        folder,
        picture.slide_id,
        sheet(top, len(picture.classes) - 1),
        sheet(bottom, 0),
        classes=picture.classes,
        network=picture.network,
        synthetic=picture.synthetic,
    )
