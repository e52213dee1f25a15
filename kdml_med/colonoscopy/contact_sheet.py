"""A picture for a person to check: some frames of a dataset with their boxes, as they are stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from kdml_med.colonoscopy.sheet import ANNOTATED, Cell, Colour, draw_box, jpeg_bytes, new_sheet
from kdml_med.storage.files import write_if_changed
from kdml_med.storage.manifest import read_member
from kdml_med.words import counted

CONTACT_SHEET_FILE = "contact_sheet.jpg"
_FRAMES = 40
_COLOURS: dict[str, Colour] = {"polyp": (255, 255, 255), "negative": (90, 200, 255)}
_UNLABELLED: Colour = (170, 170, 170)


def write_contact_sheet(dataset_dir: Path, manifest: pd.DataFrame) -> None:
    """Draw at most 40 frames, evenly chosen over the manifest, with boxes, sample ids and labels.

    Args:
        dataset_dir: a dataset folder with its shards; contact_sheet.jpg is written there.
        manifest: of that folder, columns of ``FRAME_COLUMNS``; nothing is written when it is empty.
    """
    if manifest.empty:
        (dataset_dir / CONTACT_SHEET_FILE).unlink(missing_ok=True)
        return
    chosen = manifest.iloc[np.unique(np.linspace(0, len(manifest) - 1, _FRAMES).round().astype(int))]
    sheet = new_sheet([_draw_cell(dataset_dir, row) for _, row in chosen.iterrows()])
    write_if_changed(dataset_dir / CONTACT_SHEET_FILE, jpeg_bytes(sheet))


def _draw_cell(dataset_dir: Path, row: pd.Series) -> Image.Image:
    data = read_member(dataset_dir, row["shard"], row["offset"], row["size"])
    cell = Cell(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    for box in row["boxes"]:
        draw_box(cell.draw, cell.edges([float(edge) for edge in box]), 2, ANNOTATED)
    label = row["label"] if isinstance(row["label"], str) else "unlabelled"
    colour = _COLOURS.get(label, _UNLABELLED)
    caption = f"{label}, {counted(len(row['boxes']), 'box', 'es')}" if len(row["boxes"]) else label
    return cell.finish(str(row["sample_id"]), caption, colour, name_colour=colour, rim=label == "negative")
