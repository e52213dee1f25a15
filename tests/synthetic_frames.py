"""Small dataset folders of frames with bright polyps on dark mucosa, for tests of detectors."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import (
    FRAME_CLASSES,
    MANIFEST_FILE,
    DatasetInfo,
    DatasetKind,
    manifest_table,
    write_info,
    write_manifest,
)

SPLITS = {"P0": "train", "P1": "train", "P2": "val", "P3": "test"}


def frame_pixels(boxes: Sequence[Sequence[float]], *, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Dark, noisy red with a bright rectangle for each box; boxes are in pixels of the frame."""
    generator = np.random.default_rng(seed)
    image = np.full((height, width, 3), (90, 30, 30), dtype=np.int16)
    image += generator.normal(0, 6, image.shape).astype(np.int16)
    for xmin, ymin, xmax, ymax in boxes:
        image[round(ymin) : round(ymax), round(xmin) : round(xmax)] = (240, 190, 180)
    return image.clip(0, 255).astype(np.uint8)


def random_boxes(generator: np.random.Generator, count: int, *, height: int, width: int) -> list[list[float]]:
    """Boxes with sides of a quarter to a half of the frame, whole pixels."""
    boxes = []
    for _ in range(count):
        sides = generator.integers([width // 4, height // 4], [width // 2, height // 2])
        low = generator.integers(0, [width, height] - sides)
        boxes.append([float(value) for value in (*low, *(low + sides))])
    return boxes


def write_frame_dataset(
    folder: Path,
    *,
    splits: Mapping[str, str] = SPLITS,
    frames: int = 3,
    height: int = 48,
    width: int = 64,
    labelled: bool = True,
    seed: int = 0,
) -> Path:
    """Write one sequence for each patient, as a file of concatenated PNGs; frame i has i % 3 polyps, up to two."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for patient in splits:
        shard = f"shards/{patient}.bin"
        content = io.BytesIO()
        for number in range(frames):
            boxes = random_boxes(generator, number % 3, height=height, width=width)
            offset = content.tell()
            pixels = frame_pixels(boxes, height=height, width=width, seed=len(rows))
            Image.fromarray(pixels).save(content, "PNG")
            rows.append(
                {
                    "sample_id": f"{patient}/{number}",
                    "patient_id": patient,
                    "sequence_id": f"{patient}-s",
                    "label": FRAME_CLASSES[bool(boxes)] if labelled else None,
                    "frame_index": number,
                    "boxes": boxes if labelled else None,
                    "width": width,
                    "height": height,
                    "crop_x": 0,
                    "crop_y": 0,
                    "scale": 1.0,
                    "source": f"{patient}.mp4",
                    "shard": shard,
                    "offset": offset,
                    "size": content.tell() - offset,
                }
            )
        path = folder / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    write_manifest(folder / MANIFEST_FILE, manifest_table(rows, DatasetKind.FRAMES))
    info = DatasetInfo(
        kind=DatasetKind.FRAMES.value, classes=list(FRAME_CLASSES), frame_size_px=max(height, width), synthetic=True
    )
    write_info(folder, info)
    if labelled:
        table = pd.DataFrame({"patient_id": list(splits), "split": list(splits.values())})
        freeze_splits(folder, table, mode="table", seed=None)
    return folder
