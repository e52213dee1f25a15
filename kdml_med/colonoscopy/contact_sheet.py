"""A picture for a person to check: some frames of a dataset with their boxes, as they are stored."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from kdml_med.storage.files import write_if_changed
from kdml_med.storage.manifest import read_member
from kdml_med.words import printable

CONTACT_SHEET_FILE = "contact_sheet.jpg"
_FRAMES = 40
_COLUMNS = 8
_CELL_PX = 240
_TEXT_PX = 34
_MARGIN_PX = 4
_BOX = (255, 235, 0)
_COLOURS = {"polyp": (255, 255, 255), "negative": (90, 200, 255)}
_UNLABELLED = (170, 170, 170)


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
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    height = _CELL_PX + _TEXT_PX
    sheet = Image.new("RGB", (columns * (_CELL_PX + _MARGIN_PX), rows * (height + _MARGIN_PX)), (40, 40, 40))
    for place, (_, row) in enumerate(chosen.iterrows()):
        cell = _draw_cell(dataset_dir, row)
        sheet.paste(cell, (place % columns * (_CELL_PX + _MARGIN_PX), place // columns * (height + _MARGIN_PX)))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=90)
    write_if_changed(dataset_dir / CONTACT_SHEET_FILE, stream.getvalue())


def _draw_cell(dataset_dir: Path, row: pd.Series) -> Image.Image:
    data = read_member(dataset_dir, row["shard"], row["offset"], row["size"])
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = _CELL_PX / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    draw = ImageDraw.Draw(picture)
    for box in row["boxes"]:
        edges = [float(edge) * scale for edge in box]
        # The line covers the outermost pixels inside the box.
        draw.rectangle(
            [edges[0], edges[1], max(edges[0], edges[2] - 1), max(edges[1], edges[3] - 1)], outline=_BOX, width=2
        )
    cell = Image.new("RGB", (_CELL_PX, _CELL_PX + _TEXT_PX))
    cell.paste(picture, ((_CELL_PX - picture.width) // 2, (_CELL_PX - picture.height) // 2))
    label = row["label"] if isinstance(row["label"], str) else "unlabelled"
    colour = _COLOURS.get(label, _UNLABELLED)
    text = ImageDraw.Draw(cell)
    font = ImageFont.load_default(size=12)
    name = printable(str(row["sample_id"]))
    while len(name) > 4 and text.textlength(name, font=font) > _CELL_PX - 4:
        name = "…" + name[2:]  # the end of a path tells frames apart
    text.text((3, _CELL_PX + 1), name, fill=colour, font=font)
    count = f", {len(row['boxes'])} boxes" if len(row["boxes"]) > 1 else ""
    text.text((3, _CELL_PX + 16), label + count, fill=colour, font=font)
    if label == "negative":
        text.rectangle([0, 0, _CELL_PX - 1, _CELL_PX - 1], outline=colour, width=2)
    return cell
