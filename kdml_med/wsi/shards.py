"""What is stored of one slide: a tar of tiles, and beside it a table of them with a record of the slide.

The tar is renamed into place first and the table last. A slide with both is finished; with one or none it is not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kdml_med.storage.manifest import SHARDS_DIR, DatasetKind
from kdml_med.storage.shards import read_sidecar, write_sidecar
from kdml_med.wsi.stain import StainFit

_STAIN_COLUMNS = [f"stain_{stain}_{channel}" for stain in "he" for channel in "rgb"] + ["stain_h_max", "stain_e_max"]

REJECTIONS = ("tissue", "background", "pen", "blur")
"""Reasons for leaving a tile out, in the order in which they are tested."""


@dataclass
class SlideRecord:
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
        stain: fitted stains; None when the slide did not allow a fit.
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
    stain: StainFit | None = None

    def to_row(self) -> dict[str, Any]:
        """Flat row of slides.csv."""
        row = {k: v for k, v in vars(self).items() if k not in ("rejected", "unreadable", "stain")}
        row |= {f"rejected_{reason}": self.rejected[reason] for reason in REJECTIONS}
        row["unreadable"] = self.unreadable
        stain: list[float | None] = [None] * len(_STAIN_COLUMNS)
        if self.stain is not None:
            stain = [*self.stain.matrix.T.ravel().tolist(), *self.stain.max_concentrations.tolist()]
        return row | dict(zip(_STAIN_COLUMNS, stain, strict=True))


def read_stain_fits(path: Path) -> dict[str, StainFit]:
    """Stain fits of slides.csv by slide; slides that did not allow a fit are left out."""
    table = pd.read_csv(path, dtype={"slide_id": str})
    if not set(_STAIN_COLUMNS) <= set(table.columns):
        return {}
    fits = {}
    for slide_id, *values in table.dropna(subset=_STAIN_COLUMNS)[["slide_id", *_STAIN_COLUMNS]].itertuples(index=False):
        numbers = np.array(values, dtype=np.float64)
        fits[str(slide_id)] = StainFit(numbers[:6].reshape(2, 3).T, numbers[6:])
    return fits


def shard_path(out_dir: Path, slide_id: str) -> Path:
    """Where the tiles of a slide are."""
    return out_dir / SHARDS_DIR / f"{slide_id}.tar"


def sidecar_path(out_dir: Path, slide_id: str) -> Path:
    """Where the table of a slide's tiles is."""
    return out_dir / SHARDS_DIR / f"{slide_id}.parquet"


def finished_slides(out_dir: Path) -> list[str]:
    """Sorted ids of the slides that are stored completely."""
    sidecars = (out_dir / SHARDS_DIR).glob("*.parquet")
    return sorted(
        path.stem for path in sidecars if not path.name.startswith(".") and path.with_suffix(".tar").is_file()
    )


def write_record(out_dir: Path, record: SlideRecord, rows: list[dict[str, Any]]) -> None:
    """Write the tile rows and the record of a slide: the last step, which makes it finished."""
    content = asdict(record)
    if record.stain is not None:
        content["stain"] = {name: value.tolist() for name, value in vars(record.stain).items()}
    write_sidecar(sidecar_path(out_dir, record.slide_id), rows, content, DatasetKind.TILES)


def read_record(out_dir: Path, slide_id: str) -> tuple[SlideRecord, pa.Table]:
    """Read back what ``write_record`` wrote.

    Returns:
        The record, and the rows with the columns of ``TILE_COLUMNS``.

    Raises:
        InputError: the file is damaged or not from this program.
    """
    record, table = read_sidecar(sidecar_path(out_dir, slide_id), SlideRecord, DatasetKind.TILES)
    stain: Any = record.stain
    if stain is not None:
        record.stain = StainFit(**{name: np.array(value, dtype=np.float64) for name, value in stain.items()})
    return record, table
