"""One slide: its tiles are read, answered by the networks, and dropped; what is left is a table and pictures."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.data.images import decode_image, resize_square
from kdml_med.deploy.pictures.grad_cam import explain
from kdml_med.deploy.pictures.heatmap import PANEL_PX, SlidePicture, write_maps
from kdml_med.deploy.pictures.tile_sheet import SHEET_TILES, SheetTile, choose_tiles, write_tile_sheets
from kdml_med.deploy.slides.classifier import Classifier, ClassifierPlan, Images, Probabilities
from kdml_med.deploy.slides.prediction_folder import DISAGREEMENT, PROBABILITY, write_slide
from kdml_med.deploy.slides.prediction_tables import networks_of, with_disagreement
from kdml_med.errors import InputError
from kdml_med.networks.devices import one_thread
from kdml_med.words import counted
from kdml_med.wsi.cutter import (
    Candidate,
    CutTile,
    RegionMask,
    SlideCutter,
    SlideJob,
    in_order,
    open_cutter,
    tile_name,
)
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.regions import Regions
from kdml_med.wsi.slide import Bounds, SlideError
from kdml_med.wsi.stain import normalise_stains
from kdml_med.wsi.tissue import Mask


@dataclass(frozen=True)
class PredictionJob:
    """A slide to predict, and where in it tissue counts, None for everywhere."""

    slide: SlideJob
    regions: Regions | None = None


@dataclass(frozen=True)
class SlideSettings:
    """What all slides of a run have in common; travels to other processes.

    Attributes:
        out_dir: output folder.
        options: that tiles are cut with.
        normalise: stains of tiles are normalised after they were cut, as training did with stored tiles.
        classifier: networks that answer.
        network: whose probabilities are mapped.
        classes: names, the positive one last.
        batch_size: tiles that are answered together.
        maps: pictures are wanted.
        synthetic: the networks were trained on generated data.
    """

    out_dir: Path
    options: TilingOptions
    normalise: bool
    classifier: ClassifierPlan
    network: str
    classes: list[str]
    batch_size: int
    maps: bool
    synthetic: bool


def predict_slide(
    job: PredictionJob, on_tiles: Callable[[int], None], *, settings: SlideSettings, threads: int
) -> str | None:
    """Predict one slide and write what is found into its folder.

    Args:
        job: the slide.
        on_tiles: called with a number of tiles whenever so many more were looked at.
        settings: of the run.
        threads: that read, and as many that answer; what is written does not depend on it.

    Returns:
        Why it could not be predicted; None when it was.

    Raises:
        InputError: the output cannot be written, or a network answers with something that is no number.
    """
    try:
        region = None if job.regions is None else _region(job.regions)
        with one_thread(), open_cutter(job.slide, settings.options, threads=threads, region=region) as cutter:
            _predict(cutter, job.regions, on_tiles, settings, threads)
    except SlideError as error:
        return _reworded(str(error), job.regions)
    return None


def _reworded(reason: str, regions: Regions | None) -> str:
    """What the cutter says, without options that a prediction takes from the run."""
    if regions is not None:
        reason = reason.replace("no tissue found:", "no tissue found in its regions:")
    return reason.replace("--min-tissue", "the run's min_tissue").replace("; use --stain none", "")


def _region(regions: Regions) -> RegionMask:
    def mask(width: int, height: int, downsample: float, bounds: Bounds | None) -> Mask:
        try:
            return regions.mask(width, height, downsample, bounds)
        except InputError as error:  # other slides have other regions
            raise SlideError(str(error)) from error

    return mask


def _predict(
    cutter: SlideCutter,
    regions: Regions | None,
    on_tiles: Callable[[int], None],
    settings: SlideSettings,
    threads: int,
) -> None:
    if settings.normalise and cutter.candidates and cutter.record.stain is None:
        raise SlideError("its two stains cannot be told apart, so it cannot be normalised as the run's tiles were")
    classifier = _load(settings.classifier)
    found = _Found(settings.network)
    kept = (tile for tile in cutter.tiles(on_tiles) if tile.data is not None)
    answer = functools.partial(_answer, classifier=classifier, cutter=cutter, settings=settings)
    # Batches are the same however many threads there are, and so are the bits of what is answered.
    for tiles, probabilities in in_order(answer, _batches(kept, settings.batch_size), threads):
        found.add(tiles, probabilities)
    table = found.table(cutter)
    _check_numbers(table)

    def write_pictures(folder: Path) -> list[str]:
        if not settings.maps:
            return []
        return [
            *write_maps(folder, _picture(cutter, regions, table, settings)),
            *_write_sheets(folder, found, classifier, cutter, settings),
        ]

    write_slide(settings.out_dir, cutter.record, table, write_pictures)


def _batches(tiles: Iterable[CutTile], size: int) -> Iterator[list[CutTile]]:
    rest = iter(tiles)
    while batch := list(islice(rest, size)):
        yield batch


@functools.lru_cache(maxsize=1)
def _load(plan: ClassifierPlan) -> Classifier:
    """Networks are loaded once for all slides of a process."""
    return Classifier(plan)


def _answer(
    tiles: Sequence[CutTile], *, classifier: Classifier, cutter: SlideCutter, settings: SlideSettings
) -> tuple[Sequence[CutTile], dict[str, Probabilities]]:
    images = np.stack([_image(tile, cutter, settings) for tile in tiles])
    positive = {name: values[:, -1] for name, values in classifier(images).items()}
    return tiles, positive


def _image(tile: CutTile, cutter: SlideCutter, settings: SlideSettings) -> Images:
    """What the networks see of a tile: stored by the options of the tiling, read back, and prepared as in training."""
    image = decode_image(tile.data or b"", where=tile_name(tile.candidate))
    if settings.normalise and cutter.record.stain is not None:
        image = normalise_stains(image, cutter.record.stain)
    return resize_square(image, settings.classifier.image_size)


@dataclass
class _Found:
    """What was answered so far, and the tiles with the highest and the lowest probability.

    Attributes:
        network: whose probabilities tell which those are.
        places: of tiles.
        answers: probabilities of batches of tiles, by network.
        top: heap of those for one sheet, the lowest of the highest first.
        bottom: heap of those for two sheets, the highest of the lowest first: some may be among the highest, too.
    """

    network: str
    places: list[Candidate] = field(default_factory=list)
    answers: list[dict[str, Probabilities]] = field(default_factory=list)
    top: list[tuple[float, int, CutTile]] = field(default_factory=list)
    bottom: list[tuple[float, int, CutTile]] = field(default_factory=list)

    def add(self, tiles: Sequence[CutTile], probabilities: dict[str, Probabilities]) -> None:
        for tile, probability in zip(tiles, probabilities[self.network].tolist(), strict=True):
            number = -len(self.places)  # no two are alike, and of equal tiles the first ones stay
            _keep_largest(self.top, SHEET_TILES, (probability, number, tile))
            _keep_largest(self.bottom, 2 * SHEET_TILES, (-probability, number, tile))
            self.places.append(tile.candidate)
        self.answers.append(probabilities)

    def outermost(self) -> list[tuple[float, CutTile]]:
        """Probability and tile of all that ``choose_tiles`` could choose, in reading order."""
        tiles = {-number: (probability, tile) for probability, number, tile in self.top}
        tiles |= {-number: (-negative, tile) for negative, number, tile in self.bottom}
        return [tiles[number] for number in sorted(tiles)]

    def table(self, cutter: SlideCutter) -> pd.DataFrame:
        """Columns of tiles.parquet, but for what the label table decides."""
        slide_id = cutter.job.slide_id
        table = pd.DataFrame(
            {
                "sample_id": [f"{slide_id}_{tile_name(place)}" for place in self.places],
                "slide_id": slide_id,
                "x_l0": np.array([place.x_l0 for place in self.places], np.int64),
                "y_l0": np.array([place.y_l0 for place in self.places], np.int64),
                "size_l0": cutter.grid.size_l0,
                "mpp": cutter.tile_mpp,
                "tissue_fraction": np.array([place.tissue_fraction for place in self.places], np.float64),
            }
        )
        for name in self.answers[0]:
            table[f"{PROBABILITY}{name}"] = np.concatenate([answer[name] for answer in self.answers])
        return with_disagreement(table)


def _keep_largest(heap: list[Any], most: int, item: Any) -> None:
    (heapq.heappush if len(heap) < most else heapq.heappushpop)(heap, item)


def _check_numbers(table: pd.DataFrame) -> None:
    for name in networks_of(table):
        lost = table[table[f"{PROBABILITY}{name}"].isna()]
        if len(lost):
            raise InputError(
                f"{name} gives no number for {counted(len(lost), 'tile')}, first "
                f"{lost['sample_id'].iloc[0]!r}, though its weights are finite: they are too large. Train again with a "
                "lower --learning_rate."
            )


def _picture(
    cutter: SlideCutter, regions: Regions | None, table: pd.DataFrame, settings: SlideSettings
) -> SlidePicture:
    own = table[["x_l0", "y_l0", "size_l0", DISAGREEMENT]]
    overview = cutter.picture(PANEL_PX)
    return SlidePicture(
        slide_id=cutter.job.slide_id,
        overview=overview.pixels,
        downsample=overview.downsample,
        width_l0=cutter.record.width_l0,
        height_l0=cutter.record.height_l0,
        mpp=cutter.record.mpp,
        tiles=own.assign(probability=table[f"{PROBABILITY}{settings.network}"]),
        classes=settings.classes,
        network=settings.network,
        synthetic=settings.synthetic,
        outlines=() if regions is None else regions.on_plane(cutter.record.bounds).outlines,
        bounds=cutter.record.bounds,
    )


def _write_sheets(
    folder: Path, found: _Found, classifier: Classifier, cutter: SlideCutter, settings: SlideSettings
) -> list[str]:
    outermost = found.outermost()
    top, bottom = choose_tiles(np.array([probability for probability, _ in outermost]))

    def sheet(chosen: Sequence[int], explained: int) -> list[SheetTile]:
        if not chosen:
            return []
        images = np.stack([_image(outermost[position][1], cutter, settings) for position in chosen])
        cams = explain(list(classifier.networks.values()), classifier.normalize(images), explained)
        tiles = []
        for position, image, cam in zip(chosen, images, cams, strict=True):
            probability, place = outermost[position][0], outermost[position][1].candidate
            tiles.append(SheetTile(image=image, probability=probability, x_l0=place.x_l0, y_l0=place.y_l0, cam=cam))
        return tiles

    return write_tile_sheets(
        folder,
        cutter.job.slide_id,
        sheet(top, len(settings.classes) - 1),
        sheet(bottom, 0),
        classes=settings.classes,
        network=settings.network,
        synthetic=settings.synthetic,
    )
