"""What is recorded of a slide with its tiles, and the row of slides.csv that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from kdml_med.storage.reading import damaged, read_table
from kdml_med.storage.shards import ShardRecord
from kdml_med.wsi.slide import Bounds
from kdml_med.wsi.stain import StainFit

_STAIN_COLUMNS = [f"stain_{stain}_{channel}" for stain in "he" for channel in "rgb"] + ["stain_h_max", "stain_e_max"]
_GLASS_COLUMNS = [f"glass_{channel}" for channel in "rgb"]
# Not in slides.csv, or not under these names.
_NO_COLUMNS = ("rejected", "unreadable", "rim", "glass", "stain", "left_out", "bounds", "origin")

BOUNDS_COLUMNS = [f"bounds_{name}" for name in Bounds._fields]
"""Of slides.csv, in the order of ``Bounds``; only where a slide of the table has less than its plane."""

REJECTIONS = ("tissue", "background", "pen", "blur")
"""Reasons for leaving a tile out, in the order in which they are tested."""


@dataclass
class SlideRecord(ShardRecord):
    """One row of slides.csv.

    Attributes:
        slide_id: file name without suffix.
        patient_id: whom the slide belongs to.
        file_name: without folders, so that the output is the same on every machine.
        width_l0: level-0 pixels.
        height_l0: level-0 pixels.
        mpp: micrometres per level-0 pixel.
        mpp_source: where that number comes from.
        level: pyramid level that was read.
        downsample: of the plane that was read, reduction while decoding included.
        tiles: how many are stored.
        rejected: tiles left out, by reason.
        unreadable: tiles lost because the file is damaged there.
        rim: incomplete tiles at the right and lower edge that show enough tissue; they are not cut.
        glass: colour of bare glass as measured, red, green, blue; None where too little of it is seen.
        stain: fitted stains; None when the slide did not allow a fit.
        left_out: what the file holds beside the slide that was tiled, for failures.csv; "" when nothing.
        bounds: part of the plane that was scanned; None where it is all of it. Places of tiles are those on the plane.
    """

    slide_id: str
    patient_id: str
    file_name: str
    width_l0: int
    height_l0: int
    mpp: float
    mpp_source: str
    level: int = 0
    downsample: float = 1.0
    tiles: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTIONS, 0))
    unreadable: int = 0
    rim: int = 0
    glass: list[float] | None = None
    stain: StainFit | None = None
    left_out: str = ""
    bounds: Bounds | None = None

    def to_row(self) -> dict[str, Any]:
        """Flat row of slides.csv."""
        row = {k: v for k, v in vars(self).items() if k not in _NO_COLUMNS}
        row |= {f"rejected_{reason}": self.rejected[reason] for reason in REJECTIONS}
        row |= {"unreadable": self.unreadable, "rim": self.rim}
        glass: list[float | None] = [None] * 3 if self.glass is None else [*self.glass]
        row |= dict(zip(_GLASS_COLUMNS, glass, strict=True))
        stain: list[float | None] = [None] * len(_STAIN_COLUMNS)
        if self.stain is not None:
            stain = [*self.stain.matrix.T.ravel().tolist(), *self.stain.max_concentrations.tolist()]
        return row | dict(zip(_STAIN_COLUMNS, stain, strict=True))

    def to_content(self) -> dict[str, Any]:
        """JSON types."""
        content = super().to_content()
        if not self.left_out:
            del content["left_out"]  # the record of a slide like most stays as it was
        if self.bounds is None:
            del content["bounds"]
        if self.stain is not None:
            content["stain"] = {name: value.tolist() for name, value in vars(self.stain).items()}
        return content

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Make a record from what ``to_content`` gave."""
        record = super().from_content(content)
        record.bounds = None if record.bounds is None else Bounds(*record.bounds)
        stain = content.get("stain")
        if stain is not None:
            record.stain = StainFit(**{name: np.array(value, dtype=np.float64) for name, value in stain.items()})
        return record


def slide_rows(records: Sequence[SlideRecord]) -> list[dict[str, Any]]:
    """Rows of slides.csv, with ``BOUNDS_COLUMNS`` where one of the slides needs them."""
    rows = [record.to_row() for record in records]
    if all(record.bounds is None for record in records):
        return rows
    for row, record in zip(rows, records, strict=True):
        bounds = record.bounds or Bounds(0, 0, record.width_l0, record.height_l0)
        row |= dict(zip(BOUNDS_COLUMNS, bounds, strict=True))
    return rows


def read_stain_fits(path: Path) -> dict[str, StainFit]:
    """Stain fits of slides.csv by slide; slides that did not allow a fit are left out."""
    table = read_table(path, ["slide_id"], remedy="Make the dataset again.")
    if not set(_STAIN_COLUMNS) <= set(table.columns):
        return {}
    fits = {}
    with damaged(path, remedy="Make the dataset again."):
        table[_STAIN_COLUMNS] = table[_STAIN_COLUMNS].replace("", np.nan).astype(np.float64)
    for slide_id, *values in table.dropna(subset=_STAIN_COLUMNS)[["slide_id", *_STAIN_COLUMNS]].itertuples(index=False):
        numbers = np.array(values, dtype=np.float64)
        fits[str(slide_id)] = StainFit(numbers[:6].reshape(2, 3).T, numbers[6:])
    return fits
