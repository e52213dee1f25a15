"""Small dataset folders whose tiles tell their class by texture, for tests of training and evaluation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from kdml_med.splits import freeze_splits, make_splits
from kdml_med.storage.manifest import (
    MANIFEST_FILE,
    DatasetInfo,
    manifest_table,
    read_info,
    read_manifest,
    write_info,
    write_manifest,
)

CLASSES = ["MSS", "MSI"]


def tile_pixels(positive: bool, generator: np.random.Generator, size_px: int = 32) -> np.ndarray:
    """Pink noise; positive tiles also have dark dots. Learnable in a few steps, but not from one pixel."""
    image = np.full((size_px, size_px, 3), (220, 150, 190), dtype=np.int16)
    image += generator.normal(0, 12, image.shape).astype(np.int16)
    for _ in range(10 if positive else 2):
        row, column = generator.integers(0, size_px - 4, 2)
        image[row : row + 4, column : column + 4] = (70, 40, 120)
    return image.clip(0, 255).astype(np.uint8)


def write_tile_dataset(
    folder: Path,
    *,
    patients: int = 12,
    tiles: int = 6,
    labelled: bool = True,
    split: bool = True,
    seed: int = 0,
    mpp: float | None = 1.0,
) -> Path:
    """Write a dataset folder with one slide per patient and one file of concatenated PNGs per slide."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        positive = patient % 2 == 1
        shard = f"shards/S{patient:02}.bin"
        content = io.BytesIO()
        for tile in range(tiles):
            offset = content.tell()
            Image.fromarray(tile_pixels(positive, generator)).save(content, "PNG")
            rows.append(
                {
                    "sample_id": f"S{patient:02}_{tile}",
                    "patient_id": f"P{patient:02}",
                    "slide_id": f"S{patient:02}",
                    "label": CLASSES[positive] if labelled else None,
                    "mpp": mpp,
                    "shard": shard,
                    "offset": offset,
                    "size": content.tell() - offset,
                }
            )
        path = folder / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    write_manifest(folder / MANIFEST_FILE, manifest_table(rows))
    info = DatasetInfo(classes=CLASSES if labelled else [], tile_size_px=32, mpp=mpp, synthetic=True)
    write_info(folder, info)
    if labelled and split:
        splits = make_splits(read_manifest(folder), classes=CLASSES, seed=seed)
        freeze_splits(folder, splits, mode="fractions", seed=seed)
        assert read_info(folder).splits is not None
    return folder
