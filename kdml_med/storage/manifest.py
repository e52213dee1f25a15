"""The dataset folder: the only hand-over between preprocessing and training.

A dataset folder holds

    dataset.json        what the folder is and how it was made (``DatasetInfo``)
    manifest.parquet    one row per tile (``TILE_COLUMNS``) or colonoscopy frame (``FRAME_COLUMNS``)
    slides.csv          tiles: one row per slide: where it came from, counts, stain matrix
    splits.csv          patient_id and split or fold (``kdml_med.splits``)
    shards/             one uncompressed tar per slide or sequence; members are JPEG or PNG
    failures.csv        every input that could not be used, with the reason

A tile or frame is the byte range ``[offset, offset + size)`` of the file ``image_root / shard``. Imported folders use
the same three columns with one file per tile and offset 0, or with tars that are somebody else's, so nothing is copied
and there is one way to read a tile.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kdml_med.errors import InputError
from kdml_med.storage.columns import to_column
from kdml_med.storage.files import content_hash, write_json
from kdml_med.storage.reading import build, read_json
from kdml_med.storage.rows import Layout, check_rows, read_rows, unreadable, write_rows

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
SLIDES_FILE = "slides.csv"
SPLITS_FILE = "splits.csv"
FAILURES_FILE = "failures.csv"
SHARDS_DIR = "shards"

TILE_COLUMNS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # unique in the dataset
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # class name, null when unlabelled
        pa.field("site", pa.string()),  # tissue source site or hospital, null when unknown
        pa.field("x_l0", pa.int64()),  # left edge, level-0 pixels; null for imported tiles
        pa.field("y_l0", pa.int64()),  # top edge, level-0 pixels
        pa.field("size_l0", pa.float64()),  # side of the tile, level-0 pixels
        pa.field("mpp", pa.float64()),  # micrometres per pixel of the stored tile; null when unknown
        pa.field("tissue_fraction", pa.float64()),  # 0..1; null when not measured
        pa.field("background_fraction", pa.float64()),  # 0..1, share of near-white pixels
        pa.field("pen_fraction", pa.float64()),  # 0..1, share of pixels coloured like marker ink
        pa.field("sharpness", pa.float64()),  # variance of the Laplacian of the grey image, grey levels squared
        pa.field("shard", pa.string(), nullable=False),  # path relative to image_root, "/" as separator
        pa.field("offset", pa.int64(), nullable=False),  # bytes
        pa.field("size", pa.int64(), nullable=False),  # bytes
    ]
)

FRAME_COLUMNS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # unique in the dataset
        pa.field("patient_id", pa.string(), nullable=False),  # the sequence's where patients are unknown
        pa.field("sequence_id", pa.string(), nullable=False),  # the frame's own sample_id where sequences are unknown
        pa.field("label", pa.string()),  # "polyp" with boxes, "negative" without, null when unlabelled
        pa.field("site", pa.string()),  # hospital, null when unknown
        pa.field("frame_index", pa.int64()),  # number in the video or order in the sequence, from 0
        pa.field("boxes", pa.list_(pa.list_(pa.float64()))),  # [xmin, ymin, xmax, ymax], pixels of the stored frame
        pa.field("polyp_ids", pa.list_(pa.string())),  # one for each box, unique in the dataset; null when unknown
        pa.field("width", pa.int64(), nullable=False),  # of the stored frame, pixels
        pa.field("height", pa.int64(), nullable=False),
        pa.field("crop_x", pa.int64(), nullable=False),  # left edge of the stored part, pixels of the source frame
        pa.field("crop_y", pa.int64(), nullable=False),  # top edge
        pa.field("scale", pa.float64(), nullable=False),  # stored pixels per source pixel
        pa.field("source", pa.string(), nullable=False),  # image or video that it came from, relative to the input
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)

_MAKE_AGAIN = "Make the dataset again: the command that made it goes on from what is finished."
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
FRAME_CLASSES = ("negative", "polyp")


class DatasetKind(StrEnum):
    """What the rows of a manifest are."""

    TILES = "tiles"
    FRAMES = "frames"

    @property
    def columns(self) -> pa.Schema:
        """Columns of the manifest."""
        return TILE_COLUMNS if self is DatasetKind.TILES else FRAME_COLUMNS

    @property
    def layout(self) -> Layout:
        """Columns of the manifest and the rules for them."""
        return Layout(self.columns, self.group, _MAKE_AGAIN)

    @property
    def row(self) -> str:
        """What one row is called."""
        return self.value.removesuffix("s")

    @property
    def group(self) -> str:
        """Column of what rows are cut from."""
        return "slide_id" if self is DatasetKind.TILES else "sequence_id"


@dataclass
class DatasetInfo:
    """What dataset.json holds.

    Attributes:
        kind: "tiles" or "frames".
        classes: class names in index order; the last one is the positive class. Empty without labels.
        tile_size_px: side of a stored tile, pixels; None when tiles differ or are unknown.
        frame_size_px: longest side of a stored frame, pixels; None when they keep their size.
        mpp: micrometres per pixel of stored tiles; None when unknown.
        image_root: folder that ``shard`` paths start from: "." is the dataset folder; absolute for imported tiles.
        label_level: tiles: "patient" or "slide", what carries one label, and so what metrics aggregate to by default.
            frames: "patient" or "sequence", what stays together in a split; "frame" where the source has neither.
        options: the settings that decide the bytes of the tiles, as given to the program.
        made_by: program, package version and versions of the decoding libraries.
        labels: tiles with labels: the table and its columns, patients by class, what became of rows and words; follows
            a corrected table. None where an earlier version made the folder.
        splits: mode, seed and SHA-256 of splits.csv, once splits are frozen.
        shard_bytes: size of each imported tar; None where none was imported.
        owner: what a patient_id of tiles cut from frames is, where it is no patient: "sequence" or "frame"; else None.
        synthetic: True for generated cohorts; reports then say that their figures prove plumbing only.
        schema_version: of this layout.
    """

    kind: str = "tiles"
    classes: list[str] = field(default_factory=list)
    tile_size_px: int | None = None
    frame_size_px: int | None = None
    mpp: float | None = None
    image_root: str = "."
    label_level: str = "patient"
    options: dict[str, Any] = field(default_factory=dict)
    made_by: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Any] | None = None
    splits: dict[str, Any] | None = None
    shard_bytes: dict[str, int] | None = None
    owner: str | None = None
    synthetic: bool = False
    schema_version: int = SCHEMA_VERSION


def owner_word(rows: pd.DataFrame, info: DatasetInfo | None = None) -> str:
    """What people call a patient_id: "patient", or what stands for patients where they are not known.

    Args:
        rows: of a manifest; a sequence, a frame or a slide is its own patient where nothing said whose it is. Frames
            are told from sequences by the column sample_id.
        info: of the dataset, which says whether the patients of sequences and of slides were named, and of whom crops
            of frames are; without it ids have to tell, and who was named like a sequence is taken for one.
    """
    if info is not None and info.owner:
        return info.owner
    if info is not None and info.kind == DatasetKind.FRAMES and info.label_level != "frame":
        return info.label_level
    if "sequence_id" in rows:
        if "sample_id" in rows and _stands_for_patient(rows, "sample_id").any():
            return "frame"
        return "sequence" if _stands_for_patient(rows, "sequence_id").any() else "patient"
    named = info is None or "patient" in (info.labels or {}).get("columns", {})
    return "slide" if not named and "slide_id" in rows and _stands_for_patient(rows, "slide_id").all() else "patient"


def _stands_for_patient(rows: pd.DataFrame, name: str) -> pd.Series[bool]:
    """Whether a column says the same as patient_id, for each pair of both that there is."""
    pairs = rows[[name, "patient_id"]].drop_duplicates()
    return pairs[name].astype("str") == pairs["patient_id"].astype("str")


def write_info(dataset_dir: Path, info: DatasetInfo) -> None:
    """Write dataset.json, unless it says so already."""
    content = asdict(info)
    for name in ("labels", "shard_bytes", "owner"):  # most have nothing to say there
        if content[name] is None:
            del content[name]
    write_json(dataset_dir / DATASET_FILE, content)


def read_info(dataset_dir: Path) -> DatasetInfo:
    """Read and check dataset.json.

    Raises:
        InputError: the folder or the file is missing, is not JSON, was written by another schema version, or has a key
            or value that preparation does not write.
    """
    path = Path(dataset_dir) / DATASET_FILE
    if not path.is_file():
        raise InputError(
            f"{dataset_dir} is not a dataset folder: it has no {DATASET_FILE}. Make one with `kdml-med tile`, "
            "`kdml-med import` or `kdml-med frames`."
        )
    content = read_json(path, remedy=_MAKE_AGAIN)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} has schema version {version!r}, this program reads {SCHEMA_VERSION}: make it again.")
    info = build(DatasetInfo, content, str(path), remedy=_MAKE_AGAIN)
    _check_info(info, path)
    return info


def _check_info(info: DatasetInfo, path: Path) -> None:
    """Values that have the right type and make no sense all the same."""
    levels = ("patient", "slide") if info.kind == DatasetKind.TILES else ("patient", "sequence", "frame")
    expected = {
        "kind": (info.kind in list(DatasetKind), f"one of {', '.join(DatasetKind)}"),
        "label_level": (info.label_level in levels, f"one of {', '.join(levels)}"),
        "owner": (info.owner in (None, "sequence", "frame"), "sequence or frame, or none"),
        "classes": (
            len(info.classes) in (0, 2) and len({*info.classes, ""}) == len(info.classes) + 1,
            "no or two different names, the positive one last",
        ),
    }
    for name in ("tile_size_px", "frame_size_px", "mpp"):
        value = getattr(info, name)
        expected[name] = (value is None or value > 0, "a number above 0, or null")
    for name, (right, words) in expected.items():
        if not right:
            raise InputError(f"{path}: {name} is {getattr(info, name)!r}, expected {words}. {_MAKE_AGAIN}")


def dataset_identity(dataset_dir: Path) -> dict[str, Any]:
    """What makes a dataset another one, as runs and experiments record it: its rows, splits and order of classes.

    Tiles name their class by a word, so that a dataset that was made again with the other class as the positive one has
    the same manifest.
    """
    info = read_info(dataset_dir)
    manifest = Path(dataset_dir) / MANIFEST_FILE
    return {
        "classes": info.classes,
        "manifest_sha256": content_hash(manifest) if manifest.is_file() else None,
        "splits": info.splits,
    }


def manifest_table(rows: Iterable[Mapping[str, Any]], kind: DatasetKind = DatasetKind.TILES) -> pa.Table:
    """Arrow table of rows with exactly the columns and types of the contract; absent keys become null."""
    rows = list(rows)
    columns = [to_column([row.get(field.name) for row in rows], field.type) for field in kind.columns]
    return pa.Table.from_arrays(columns, schema=kind.columns)


def kind_of(table: pa.Table) -> DatasetKind:
    """Kind of a manifest, told by its columns."""
    return DatasetKind.FRAMES if DatasetKind.FRAMES.group in table.column_names else DatasetKind.TILES


def write_manifest(path: Path, table: pa.Table) -> None:
    """Write manifest rows to a parquet file atomically; the same rows give the same bytes.

    Args:
        path: of the file.
        table: columns of the contract; text may be codes (``kdml_med.storage.rows.compact_rows``).

    Raises:
        InputError: the rows break the contract, see ``validate_manifest``.
    """
    validate_manifest(table, str(path))
    write_rows(path, table, kind_of(table).layout)


def validate_manifest(table: pa.Table, where: str) -> None:
    """Check the rules that readers rely on.

    Raises:
        InputError: a column is missing, an id is empty, a sample_id occurs twice, or a slide or sequence has two
            patients.
    """
    check_rows(table, kind_of(table).layout, where)


def read_manifest(
    dataset_dir: Path, columns: Collection[str] | None = None, *, keep: npt.NDArray[np.bool_] | None = None
) -> pd.DataFrame:
    """Read and check manifest.parquet, some row groups at a time.

    Args:
        dataset_dir: a dataset folder.
        columns: to read; None for all.
        keep: [rows], which rows are wanted, of a manifest that was read, and so checked, before. None for all.

    Returns:
        One row per tile or frame, columns of ``TILE_COLUMNS`` or ``FRAME_COLUMNS`` in that order. patient_id, slide_id
        or sequence_id, label, site and shard are categorical, in the order of their words, and every category occurs.

    Raises:
        InputError: the file is missing, unreadable, or breaks the contract.
    """
    path = Path(dataset_dir) / MANIFEST_FILE
    if not path.is_file():
        raise InputError(
            f"{dataset_dir} has no {MANIFEST_FILE}: preprocessing did not finish. Run the same command again."
        )
    try:
        there = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, DatasetKind.TILES.layout, error) from error
    layout = kind_of(there.empty_table()).layout
    layout.check_columns(there.names, str(path))
    return read_rows(path, layout, layout.columns.names if columns is None else columns, keep)


def image_root(dataset_dir: Path, info: DatasetInfo) -> Path:
    """Folder that the ``shard`` column starts from.

    Raises:
        InputError: an imported tar is not there any more, or was replaced since.
    """
    root = (Path(dataset_dir) / info.image_root).resolve()
    for name, size in (info.shard_bytes or {}).items():
        try:
            now = (root / name).stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {root / name}: {error.strerror}. Run the import again.") from error
        if now != size:
            raise InputError(
                f"{root / name} was replaced: it has {now} bytes, {size} when it was imported. Run the import again."
            )
    return root


def read_member(root: Path, shard: str, offset: int, size: int) -> bytes:
    """Encoded bytes of one tile or frame.

    Raises:
        InputError: the shard is missing or shorter than the manifest says, or an imported file has another size.
    """
    path = root / shard
    whole = size
    try:
        with path.open("rb") as stream:
            if path.suffix.lower() in _IMAGE_SUFFIXES:  # imported: a file by itself
                whole = os.fstat(stream.fileno()).st_size
            stream.seek(offset)
            data = stream.read(size)
    except OSError as error:
        raise InputError(f"cannot read image data from {path}: {error.strerror}.") from error
    if len(data) != size:
        raise InputError(f"{path} is cut short: {size} bytes expected at {offset}, {len(data)} found.")
    if whole != size:
        raise InputError(
            f"{path} was replaced: it has {whole} bytes, {size} when it was imported. Run the import again."
        )
    return data
