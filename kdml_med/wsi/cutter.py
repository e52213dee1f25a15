"""One slide: find the tissue, cut the tiles, judge and encode them."""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

from kdml_med.errors import InputError
from kdml_med.pixels import resize
from kdml_med.storage.shards import Origin
from kdml_med.words import counted
from kdml_med.wsi.glass import AS_BRIGHT, Glass, measure_glass
from kdml_med.wsi.grid import ReadPlan, TileGrid, choose_plane, make_grid
from kdml_med.wsi.native import NativeSlide
from kdml_med.wsi.opening import open_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.overview import UNREADABLE
from kdml_med.wsi.quality import TileQuality, measure_quality
from kdml_med.wsi.shards import SlideRecord
from kdml_med.wsi.slide import Bounds, Pixels, Slide, SlideError, crop_of, resolve_mpp
from kdml_med.wsi.stain import StainFit, fit_stains, normalise_stains
from kdml_med.wsi.tissue import Mask, MaskIntegral, Overview, Places, read_overview, tissue_mask

RegionMask = Callable[[int, int, float, Bounds | None], Mask]
"""Called with width, height and downsample of the overview, and with the part of the plane that was scanned (None for
all of it); says which pixels of the overview, bool [height, width], may be looked at."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_STAIN_SAMPLE = 24
"""Tiles that the stain fit looks at, evenly spread over the tissue."""
_STAIN_PIXELS = 60_000
"""Of them, at least so many pixels where they have as many, evenly spread as well."""


@dataclass(frozen=True)
class SlideJob:
    """A slide to tile, what the label table knows about it, and what tells its files from others."""

    path: Path
    slide_id: str
    patient_id: str
    label: str | None = None
    site: str | None = None
    table_mpp: float | None = None
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True)
class Candidate:
    """A place on the grid that shows enough tissue in the overview."""

    x_l0: int
    y_l0: int
    tissue_fraction: float


@dataclass(frozen=True)
class CutTile:
    """A candidate after reading: encoded when kept, with a reason when not."""

    candidate: Candidate
    quality: TileQuality | None
    reason: str | None
    data: bytes | None = None


class TileReader:
    """Reads, judges and encodes single tiles of one slide. One for each thread."""

    def __init__(
        self, slide: Slide, grid: TileGrid, plan: ReadPlan, options: TilingOptions, background_level: float
    ) -> None:
        self._grid, self._plan, self._options = grid, plan, options
        self._background_level = background_level
        self._peek = slide.peek if isinstance(slide, NativeSlide) else slide.read
        level = slide.levels[plan.level]
        self._width_r, self._height_r = level.width // plan.factor, level.height // plan.factor

    def read(self, candidate: Candidate) -> Pixels:
        """Pixels of a tile in its final size.

        Returns:
            uint8, [tile_size_px, tile_size_px, 3], RGB; valid until the next call.

        Raises:
            SlideError: a part of it cannot be decoded.
        """
        size_px = self._options.tile_size_px
        left, top, right, bottom = self._plan.box_r(candidate.x_l0, candidate.y_l0, self._grid.size_l0)
        # A level cut to whole pixels can end a fraction of a pixel before the slide does.
        right, bottom = min(right, self._width_r), min(bottom, self._height_r)
        x_r, y_r = int(left), int(top)
        width_r, height_r = math.ceil(right) - x_r, math.ceil(bottom) - y_r
        pixels = self._peek(self._plan.level, self._plan.factor, x_r, y_r, width_r, height_r)
        box = (left - x_r, top - y_r, right - x_r, bottom - y_r)
        return resize(pixels, size_px, size_px, box, reduction="bicubic")

    def cut(self, candidate: Candidate, stain: StainFit | None) -> CutTile:
        """Read a tile, judge it, and encode it when it is kept; normalised when ``stain`` is given."""
        try:
            tile = self.read(candidate)
        except SlideError:
            return CutTile(candidate, None, UNREADABLE)
        quality = measure_quality(tile, self._background_level)
        reason = _rejection(quality, self._options)
        if reason is not None:
            return CutTile(candidate, quality, reason)
        if stain is not None:
            tile = normalise_stains(tile, stain)
        return CutTile(candidate, quality, None, encode_tile(tile, self._options))


def _candidates(places: Places, shares: npt.NDArray[np.float64], chosen: Mask) -> list[Candidate]:
    rows = zip(places[chosen].tolist(), shares[chosen].tolist(), strict=True)
    return [Candidate(x_l0, y_l0, share) for (x_l0, y_l0), share in rows]


def encode_tile(tile: Pixels, options: TilingOptions) -> bytes:
    """Tile as a JPEG (colour not subsampled: H&E differs in colour more than in brightness) or PNG file."""
    tile = np.ascontiguousarray(tile)
    if options.image_format == "png":
        # Tissue hardly repeats itself to the bit: looking for repetitions takes longer and saves nothing.
        huffman = imagecodecs.PNG.STRATEGY.HUFFMAN_ONLY
        return bytes(imagecodecs.png_encode(tile, level=1, strategy=huffman, filter=imagecodecs.PNG.FILTER.PAETH))
    return bytes(simplejpeg.encode_jpeg(tile, options.jpeg_quality, "RGB", "444"))


def _rejection(quality: TileQuality, options: TilingOptions) -> str | None:
    if quality.background_fraction > options.max_background:
        return "background"
    if quality.pen_fraction > options.max_pen:
        return "pen"
    if quality.sharpness < options.min_sharpness:
        return "blur"
    return None


@contextlib.contextmanager
def open_cutter(
    job: SlideJob, options: TilingOptions, *, threads: int = 1, region: RegionMask | None = None
) -> Iterator[SlideCutter]:
    """Open a slide, find its tissue, and close it again at the end.

    Args:
        job: the slide.
        options: of the run.
        threads: that read rows of the slide at the same time; the tiles do not depend on it.
        region: where tissue counts; None for the whole slide.

    Raises:
        SlideError: nothing can be made of this slide; the message says why.
    """
    slide = open_slide(job.path, fast=options.reader == "auto")
    try:
        yield SlideCutter(job, slide, options, threads, region)
    finally:
        slide.close()


class SlideCutter:
    """One slide: its overview with the tissue, and its tiles.

    Args:
        job: the slide.
        slide: opened; the caller closes it.
        options: of the run.
        threads: that read rows of the slide at the same time.
        region: where tissue counts; None for the whole slide.

    Attributes:
        record: what is known of the slide; ``tiles`` counts in it.
        overview: the whole slide, reduced.
        grid: of the tiles.
        tile_mpp: micrometres per pixel of a tile, as it comes out.
        candidates: places with enough tissue, in reading order.
        reasons: why a tile was left out, by its origin (x_l0, y_l0); None when it was kept.

    Raises:
        SlideError: the slide has no usable resolution, is smaller than a tile, or its stains cannot be told apart where
            tiles are to be normalised.
    """

    def __init__(
        self,
        job: SlideJob,
        slide: Slide,
        options: TilingOptions,
        threads: int = 1,
        region: RegionMask | None = None,
    ) -> None:
        self.job, self._slide, self._options, self._threads = job, slide, options, threads
        slide_mpp, source = resolve_mpp(slide, table_mpp=job.table_mpp, assumed_mpp=options.assume_mpp)
        full = slide.levels[0]
        try:
            self.grid = make_grid(
                full.width, full.height, slide_mpp=slide_mpp, mpp=options.mpp, tile_size_px=options.tile_size_px
            )
        except InputError as error:
            raise SlideError(str(error)) from error
        if not len(self.grid):
            raise SlideError(
                f"is smaller ({full.width} × {full.height} px) than one tile ({self.grid.size_l0:.0f} px at level 0)"
            )
        self.tile_mpp = self.grid.size_l0 * slide_mpp / options.tile_size_px
        factors = [slide.factors(level) for level in range(len(slide.levels))]
        downsamples = [level.downsample for level in slide.levels]
        self._plan = choose_plane(downsamples, factors, slide_mpp=slide_mpp, mpp=options.mpp)
        self.record = SlideRecord(
            slide_id=job.slide_id,
            patient_id=job.patient_id,
            file_name=job.path.name,
            width_l0=full.width,
            height_l0=full.height,
            mpp=slide_mpp,
            mpp_source=source,
            level=self._plan.level,
            downsample=self._plan.downsample,
            left_out=slide.left_out,
            bounds=crop_of(slide),
            origin=job.origin,
        )
        self.reasons: dict[tuple[int, int], str | None] = {}
        self.overview = read_overview(slide, slide_mpp)
        glasses = measure_glass(self.overview.pixels, ~self.overview.unread)
        if glasses:
            self.record.glass = glasses[0].colour.tolist()
        self._background_level = min([options.background_level, *(AS_BRIGHT * glass.brightness for glass in glasses)])
        self.candidates = self._find_candidates(glasses, region)
        if self.candidates:
            self.record.stain = self._fit_stain(self._stained)
            if options.stain == "macenko" and self.record.stain is None:
                raise SlideError("its two stains cannot be told apart, so it cannot be normalised; use --stain none")

    def picture(self, longest_px: int) -> Overview:
        """The whole slide for people to look at: the overview, or a finer one of a slide that is small on it.

        Args:
            longest_px: wanted of the longer side; at least half of it is given where the slide has as much.
        """
        if 2 * max(self.overview.pixels.shape) > longest_px or self.overview.downsample == 1:
            return self.overview
        longest = max(self.record.width_l0, self.record.height_l0)
        return read_overview(self._slide, self.record.mpp, max(1.0, longest / longest_px) * self.record.mpp)

    def _reader(self, slide: Slide) -> TileReader:
        return TileReader(slide, self.grid, self._plan, self._options, self._background_level)

    def _find_candidates(self, glasses: Sequence[Glass], region: RegionMask | None) -> list[Candidate]:
        tissue = tissue_mask(self.overview, glasses)
        shares = whole = MaskIntegral(tissue, self.overview.downsample)
        if region is not None:
            height, width = tissue.shape
            inside = region(width, height, self.overview.downsample, self.record.bounds)
            shares = MaskIntegral(tissue & inside, self.overview.downsample)
        size_l0, enough = self.grid.size_l0, self._options.min_tissue
        rim, places = (
            np.array(list(found), np.int64).reshape(-1, 2) for found in (self.grid.rim(), self.grid.origins())
        )
        self.record.rim = int(np.count_nonzero(shares.fractions(rim[:, 0], rim[:, 1], size_l0) >= enough))
        found = shares.fractions(places[:, 0], places[:, 1], size_l0)
        candidates = _candidates(places, found, found >= enough)
        # Stains are those of the slide, so that a region changes no tile in it.
        self._stained = candidates
        if region is not None:
            stained = whole.fractions(places[:, 0], places[:, 1], size_l0) >= enough
            self._stained = _candidates(places, found, stained)
        self.reasons |= dict.fromkeys(zip(*places[found < enough].T.tolist(), strict=True), "tissue")
        self.record.rejected["tissue"] += len(places) - len(candidates)
        return candidates

    def tiles(self, on_tiles: Callable[[int], None] = lambda count: None) -> Iterator[CutTile]:
        """Cut all candidates, in reading order; with a limit, drawn anew until enough are kept or none are left.

        Args:
            on_tiles: called with a number of tiles whenever so many more were looked at.

        Raises:
            SlideError: there is no tissue, or, at the end, no tile was kept.
        """
        if not self.candidates:
            raise SlideError(f"no tissue found: none of {len(self.grid)} tiles reaches --min-tissue")
        self._readers: queue.SimpleQueue[TileReader] = queue.SimpleQueue()
        clones = [self._slide] + [self._slide.clone() for _ in range(self._threads - 1)]
        kept = False
        try:
            for clone in clones:
                self._readers.put(self._reader(clone))
            for tile in self._cut_all(on_tiles):
                self._count(tile)
                kept |= tile.data is not None
                yield tile
        finally:
            for clone in clones[1:]:
                clone.close()
        if not kept:
            raise SlideError(self._why_nothing_is_left())

    def _count(self, tile: CutTile) -> None:
        self.reasons[tile.candidate.x_l0, tile.candidate.y_l0] = tile.reason
        if tile.reason is None:
            self.record.tiles += 1
        elif tile.reason == UNREADABLE:
            self.record.unreadable += 1
        else:
            self.record.rejected[tile.reason] += 1

    def _fit_stain(self, candidates: Sequence[Candidate]) -> StainFit | None:
        picks = np.linspace(0, len(candidates) - 1, min(_STAIN_SAMPLE, len(candidates))).round().astype(int)
        reader = self._reader(self._slide)
        step = max(1, math.isqrt(len(picks) * self._options.tile_size_px**2 // _STAIN_PIXELS))
        sample = []
        for pick in picks:
            with contextlib.suppress(SlideError):  # counted when its turn comes
                sample.append(reader.read(candidates[pick])[::step, ::step].reshape(-1, 3).copy())
        return fit_stains(np.concatenate(sample)) if sample else None

    def _cut_all(self, on_tiles: Callable[[int], None]) -> Iterator[CutTile]:
        limit, candidates = self._options.limit_tiles, self.candidates
        if limit is None:
            yield from self._cut_rows(candidates, on_tiles)
            return
        # The name is mixed in so that slides of one size do not all get the same places.
        seed = [self._options.seed, *self.job.slide_id.encode()]
        order = np.random.default_rng(seed).permutation(len(candidates))
        cut: list[CutTile] = []
        start, missing = 0, limit
        while missing > 0 and start < len(order):
            chosen = [candidates[i] for i in sorted(order[start : start + missing])]
            start += missing
            cut.extend(self._cut_rows(chosen, on_tiles))
            missing = limit - sum(tile.data is not None for tile in cut)
        yield from sorted(cut, key=lambda tile: (tile.candidate.y_l0, tile.candidate.x_l0))

    def _cut_rows(self, candidates: Sequence[Candidate], on_tiles: Callable[[int], None]) -> Iterator[CutTile]:
        stain = self.record.stain if self._options.stain == "macenko" else None

        def cut_row(row: Sequence[Candidate]) -> list[CutTile]:
            reader = self._readers.get()
            try:
                return [reader.cut(candidate, stain) for candidate in row]
            finally:
                self._readers.put(reader)

        for tiles in in_order(cut_row, split_rows(candidates), self._threads):
            on_tiles(len(tiles))
            yield from tiles

    def _why_nothing_is_left(self) -> str:
        counts = {k: v for k, v in self.record.rejected.items() if v and k != "tissue"}
        if self.record.unreadable:
            counts[UNREADABLE] = self.record.unreadable
        parts = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
        return f"none of {counted(len(self.candidates), 'tissue tile')} was kept ({parts})"


def tile_name(candidate: Candidate) -> str:
    """What a tile is called within its slide."""
    return f"x{candidate.x_l0:07d}_y{candidate.y_l0:07d}"


def split_rows(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Candidates in reading order as rows of tiles side by side."""
    return [list(row) for _, row in itertools.groupby(candidates, key=lambda candidate: candidate.y_l0)]


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Results of ``work`` in the order of ``items``, a few items ahead of the consumer and no more."""
    if threads == 1:
        yield from map(work, items)
        return
    ahead: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
