"""A dataset folder of loose image files, small enough to write in a test."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from kdml_med.splits import freeze_splits
from kdml_med.storage.manifest import DatasetInfo, manifest_table, write_info, write_manifest

CLASSES = ["MSS", "MSI"]


def tile_pixels(number: int, size_px: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return stream.getvalue()


def write_dataset(
    folder: Path,
    patients: dict[str, tuple[str, str | None, int]],
    *,
    size_px: int = 16,
    other_sizes_px: Mapping[str, int] | None = None,
    freeze: bool = True,
) -> Path:
    """Write patients given as (split, label, number of tiles); tiles are PNG and JPEG files in turn.

    Tiles with these ids have sides of their own, of which dataset.json knows nothing.
    """
    rows = []
    for patient, (_, label, tiles) in patients.items():
        for tile in range(tiles):
            suffix = "jpg" if tile % 2 else "png"
            side_px = (other_sizes_px or {}).get(f"{patient}/{tile}", size_px)
            data = encode(tile_pixels(len(rows), side_px), suffix)
            path = folder / "images" / f"{patient}_{tile}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            rows.append(
                {
                    "sample_id": f"{patient}/{tile}",
                    "patient_id": patient,
                    "slide_id": f"{patient}-s",
                    "label": label,
                    "shard": f"images/{path.name}",
                    "offset": 0,
                    "size": len(data),
                }
            )
    write_info(folder, DatasetInfo(classes=CLASSES, tile_size_px=size_px))
    write_manifest(folder / "manifest.parquet", manifest_table(rows))
    if freeze:
        splits = pd.DataFrame({"patient_id": list(patients), "split": [split for split, _, _ in patients.values()]})
        freeze_splits(folder, splits, mode="table", seed=None)
    return folder
