"""How fast stored images become batches, before a change and after it.

    python -m tests.benchmarks.bench_loading --before FOLDER [--rounds 3] [--items 2000] [--epoch DATASET]

Datasets are generated: tiles of 224 and of 64 px in the tiler's default JPEG, frames of 576 × 720 px in the default of
`prepare_frames`. Each checkout loads them as its bundles' train.json says, with the augmentation of a training, batches
of 16 and 0, 1 and 2 reading processes; checkouts take turns in processes of their own, measured from inside and from
the second batch on. --epoch trains the version v1 on a dataset folder for one epoch by each checkout instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import simplejpeg

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
from tests.benchmarks.racing import Lap, Standing, describe_machine, race, standing, timed
from tests.synthetic_frames import frame_pixels, random_boxes
from tests.synthetic_slides import tissue_picture

WORKERS = (0, 1, 2)
PATIENTS, IMAGES = 24, 24
FRAME_SIZE = (576, 720)
CLASSES = ["MSS", "MSI"]
_WORKER = Path(__file__).with_name("loading_worker.py")

Pixels = npt.NDArray[np.uint8]


def _write(folder: Path, images: Iterator[tuple[bytes, dict[str, Any]]], info: DatasetInfo) -> Path:
    """A dataset folder of images with the columns that they bring; three quarters of the patients are for training."""
    rows: list[dict[str, Any]] = []
    splits = {}
    for patient in range(PATIENTS):
        name, shard = f"P{patient:02}", f"shards/S{patient:02}.tar"
        splits[name] = "train" if patient % 4 else "val" if patient % 8 else "test"
        path = folder / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            for number in range(IMAGES):
                data, columns = next(images)
                place = {"shard": shard, "offset": stream.tell(), "size": len(data)}
                rows.append({"sample_id": f"{name}_{number}", "patient_id": name, **columns, **place})
                stream.write(data)
    kind = DatasetKind(info.kind)
    for row in rows:
        row["slide_id" if kind is DatasetKind.TILES else "sequence_id"] = "S" + row["patient_id"]
    write_manifest(folder / MANIFEST_FILE, manifest_table(rows, kind))
    write_info(folder, info)
    freeze_splits(folder, pd.DataFrame(splits.items(), columns=["patient_id", "split"]), mode="table", seed=None)
    return folder


def write_tiles(folder: Path, side_px: int) -> Path:
    """Tiles of generated tissue."""
    picture = tissue_picture(3000, 3000)[500:2500, 500:2500]
    generator = np.random.default_rng(0)

    def images() -> Iterator[tuple[bytes, dict[str, Any]]]:
        for number in range(PATIENTS * IMAGES):
            y, x = generator.integers(0, len(picture) - side_px, 2)
            tile = np.ascontiguousarray(picture[y : y + side_px, x : x + side_px])
            label = CLASSES[number // IMAGES // 2 % 2]
            yield simplejpeg.encode_jpeg(tile, 97, "RGB", "444"), {"label": label, "mpp": 0.5}

    return _write(folder, images(), DatasetInfo(classes=CLASSES, tile_size_px=side_px, mpp=0.5, synthetic=True))


def write_frames(folder: Path) -> Path:
    """Frames with up to two bright boxes."""
    height, width = FRAME_SIZE
    generator = np.random.default_rng(0)

    def images() -> Iterator[tuple[bytes, dict[str, Any]]]:
        for number in range(PATIENTS * IMAGES):
            boxes = random_boxes(generator, number % 3, height=height, width=width)
            frame = frame_pixels(boxes, height=height, width=width, seed=number)
            columns = {"label": FRAME_CLASSES[bool(boxes)], "frame_index": number % IMAGES, "boxes": boxes}
            columns |= {"width": width, "height": height, "crop_x": 0, "crop_y": 0, "scale": 1.0, "source": "generated"}
            yield simplejpeg.encode_jpeg(frame, 95, "RGB", "444"), columns

    info = DatasetInfo(kind="frames", classes=list(FRAME_CLASSES), frame_size_px=max(FRAME_SIZE), synthetic=True)
    return _write(folder, images(), info)


@dataclass(frozen=True)
class Material:
    """A dataset that is loaded, and for which task."""

    name: str
    task: str
    folder: Path


def load(checkout: Path, material: Material, workers: int, items: int) -> Lap:
    """One epoch of a checkout's training loader."""
    command = [sys.executable, str(_WORKER), material.task, "--dataset", str(material.folder)]
    return race([[*command, "--workers", str(workers), "--items", str(items)]], {"PYTHONPATH": str(checkout.resolve())})


def print_loading(materials: Sequence[Material], checkouts: dict[str, Path], rounds: int, items: int) -> None:
    """The table of loaders."""
    laps: dict[tuple[str, int, str], list[Lap]] = {}
    for number in range(rounds):
        for material in materials:
            for workers in WORKERS:
                for name, checkout in checkouts.items():
                    print(f"round {number + 1}: {material.name}, {workers} workers, {name}", file=sys.stderr)
                    lap = load(checkout, material, workers, items)
                    laps.setdefault((material.name, workers, name), []).append(lap)
    print("| items | reading processes | items/s | spread | × | CPU ms an item | × |\n|---|---|---|---|---|---|---|")
    for material in materials:
        for workers in WORKERS:
            old, new = (standing(laps[material.name, workers, name]) for name in checkouts)
            print(f"| {material.name} | {workers} | {_change(old, new)} |")


def _change(old: Standing, new: Standing) -> str:
    cells = [
        f"{old.rate:,.0f} → {new.rate:,.0f}",
        f"{old.spread:.0%}, {new.spread:.0%}",
        f"{new.rate / old.rate:.1f}",
        f"{old.cpu_seconds:.2f} → {new.cpu_seconds:.2f}",
        f"{old.cpu_seconds / new.cpu_seconds:.1f}",
    ]
    return " | ".join(cells)


def print_epochs(dataset: Path, checkouts: dict[str, Path], rounds: int, items: int | None) -> None:
    """The table of one epoch of v1, with its validation and the start of the program."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    for number in range(rounds):
        for name, checkout in checkouts.items():
            print(f"round {number + 1}: an epoch, {name}", file=sys.stderr)
            seconds[name].append(_train(checkout, dataset, items))
    print("| one epoch of v1 | s | CPU s |\n|---|---|---|")
    for name, pairs in seconds.items():
        wall, cpu = (float(np.median(values)) for values in zip(*pairs, strict=True))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")


def _train(checkout: Path, dataset: Path, items: int | None) -> tuple[float, float]:
    """Seconds and CPU seconds of one epoch as a command."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kdml_med.cli", "train", str(dataset.resolve()), "--run", f"{folder}/run"]
        command += ["--version", "v1", "--max-epochs", "1", "--device", "cpu"]
        command += ["--tiles-per-epoch", str(items)] if items else []
        return timed(command, checkout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the version to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, help="of an epoch; 2,000 for loaders, all of the dataset for --epoch")
    parser.add_argument("--epoch", type=Path, metavar="DATASET", help="time a training on these tiles instead")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before, "after": Path(__file__).parents[2]}
    print(f"{describe_machine()}; {arguments.rounds} rounds\n")
    if arguments.epoch:
        print_epochs(arguments.epoch, checkouts, arguments.rounds, arguments.items)
        return
    with tempfile.TemporaryDirectory() as folder:
        materials = [
            Material("tiles, 224 px", "msi", write_tiles(Path(folder, "tiles_224"), 224)),
            Material("tiles, 64 px", "msi", write_tiles(Path(folder, "tiles_64"), 64)),
            Material("frames, 576 × 720 px", "polyp", write_frames(Path(folder, "frames"))),
        ]
        print_loading(materials, checkouts, arguments.rounds, arguments.items or 2000)


if __name__ == "__main__":
    main()
