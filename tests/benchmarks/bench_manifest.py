"""Seconds and peak memory of what is done with a manifest of 10 million rows.

    python -m tests.benchmarks.bench_manifest [--rows 10000000] [--slides 8000] [--steps read train ...] [--rounds 1]

A folder with manifest.parquet, dataset.json and splits.csv as ``kdml-med tile`` makes them is generated, without any
image. Every step runs in a process of its own; the table names its CPU seconds, its wall seconds and its largest
resident set, of which an empty process that has imported the package takes what "import" says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdml_med.data.samples import SampleLoader
from kdml_med.data.sampling import EpochSampler
from kdml_med.data.tiles import TileDataset
from kdml_med.metrics.aggregation import group_table
from kdml_med.metrics.evaluation import evaluate_predictions
from kdml_med.runs import write_predictions
from kdml_med.splits import freeze_splits, make_splits
from kdml_med.storage.manifest import (
    MANIFEST_FILE,
    TILE_COLUMNS,
    DatasetInfo,
    read_info,
    read_manifest,
    write_info,
    write_manifest,
)

CLASSES = ["MSS", "MSI"]
SIDE_L0 = 896


def slide_tables(rows: int, slides: int) -> Iterator[pa.Table]:
    """Rows of one slide after the other; two slides for every third patient, a quarter of the patients positive."""
    generator = np.random.default_rng(0)
    sizes = np.full(slides, rows // slides)
    sizes[: rows - sizes.sum()] += 1
    for number, size in enumerate(sizes):
        patient = number * 3 // 4
        column, row = np.divmod(np.arange(size), 60)
        x, y = (column * SIDE_L0, row * SIDE_L0)
        slide = f"TCGA-A{patient % 10}-{patient:04d}-01Z-00-DX{number % 4 + 1}"
        ends = [pc.utf8_lpad(pa.array(values).cast(pa.string()), 7, "0") for values in (x, y)]
        ids = pc.binary_join_element_wise(f"{slide}_x", ends[0], "_y", ends[1], "")
        sizes_bytes = generator.integers(15_000, 40_000, size)
        facts = {
            "sample_id": ids,
            "patient_id": slide[:12],
            "slide_id": slide,
            "label": CLASSES[patient % 4 == 0],
            "site": slide[5:7],
            "x_l0": x,
            "y_l0": y,
            "size_l0": float(SIDE_L0),
            "mpp": 0.5,
            **{name: generator.random(size) for name in TILE_COLUMNS.names[9:13]},
            "shard": f"shards/{slide}.tar",
            "offset": np.cumsum(sizes_bytes) - sizes_bytes + 512 * np.arange(1, size + 1),
            "size": sizes_bytes,
        }
        columns = [
            pa.repeat(value, size) if isinstance(value, (str, float)) else pa.array(value) for value in facts.values()
        ]
        yield pa.table(columns, names=TILE_COLUMNS.names).cast(TILE_COLUMNS)


def make_folder(folder: Path, rows: int, slides: int) -> None:
    """Write the folder; splits are drawn over the patients, one row each."""
    first = []
    with pq.ParquetWriter(folder / MANIFEST_FILE, TILE_COLUMNS, compression="zstd") as writer:
        held: list[pa.Table] = []
        for table in slide_tables(rows, slides):
            first.append(table.slice(0, 1))
            held.append(table)
            if sum(map(len, held)) >= 2**20:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))
    info = DatasetInfo(classes=CLASSES, tile_size_px=224, mpp=0.5, options={"slides": slides}, synthetic=True)
    write_info(folder, info)
    splits = make_splits(pa.concat_tables(first).to_pandas(), classes=CLASSES)
    freeze_splits(folder, splits, mode="fractions", seed=0)


def nothing(folder: Path) -> object:
    """What the imports take."""
    return folder


def read(folder: Path) -> object:
    """Read and check every column."""
    return read_manifest(folder)


def train(folder: Path) -> object:
    """Open the training split, leakage gate included."""
    return TileDataset(folder, "train")


def whole(folder: Path) -> object:
    """Open every row, as inference does."""
    return TileDataset(folder)


def shuffle(folder: Path, *, balance: bool = False) -> object:
    """Open the training split and draw the first samples of an epoch."""
    order = iter(EpochSampler(TileDataset(folder, "train"), balance=balance))
    return [next(order) for _ in range(64)]


def balance(folder: Path) -> object:
    """Likewise, classes balanced."""
    return shuffle(folder, balance=True)


def epoch(folder: Path) -> object:
    """Open the training split and deal out a whole balanced epoch of batches of positions."""
    loader = SampleLoader(TileDataset(folder, "train"), batch_size=64, training=True, balance=True)
    return sum(len(batch) for batch in loader.batch_sampler)


def splits(folder: Path) -> object:
    """Read the manifest and draw splits."""
    return make_splits(read_manifest(folder, ["patient_id", "label", "site"]), classes=CLASSES)


def predictions_of(folder: Path) -> tuple[Any, pd.DataFrame]:
    """The dataset, and predictions of one network for its every row."""
    dataset = TileDataset(folder)
    probability = np.random.default_rng(0).random(len(dataset))
    facts = dataset.rows[["sample_id", "slide_id", "patient_id"]]
    return dataset, facts.assign(network="student_0", label=np.asarray(dataset.labels), probability=probability)


def group(folder: Path) -> object:
    """Open every row, and aggregate predictions to patients."""
    dataset, predictions = predictions_of(folder)
    return group_table(predictions, level="patient", method="mean", classes=dataset.classes)


def evaluate(folder: Path) -> object:
    """Open every row, and compute all figures with intervals from 200 resamples."""
    return evaluate_predictions(predictions_of(folder)[1], level="patient", method="mean", resamples=200)


def predictions(folder: Path) -> object:
    """Open every row, and write predictions.parquet."""
    dataset, table = predictions_of(folder)
    return write_predictions(folder / "predictions.parquet", table, dataset.rows)


def write(folder: Path) -> object:
    """Write the manifest from the tables of its slides."""
    rows = pq.ParquetFile(folder / MANIFEST_FILE).metadata.num_rows
    target = folder / "written.parquet"
    tables = slide_tables(rows, read_info(folder).options["slides"])
    return write_manifest(target, pa.concat_tables(tables))


STEPS: dict[str, Callable[[Path], object]] = {
    "import": nothing,
    "read": read,
    "train": train,
    "whole": whole,
    "shuffle": shuffle,
    "balance": balance,
    "epoch": epoch,
    "splits": splits,
    "group": group,
    "evaluate": evaluate,
    "predictions": predictions,
    "write": write,
}


def measure(name: str, folder: Path) -> None:
    """Run a step in this process and print its figures as JSON."""
    wall, cpu = time.perf_counter(), time.process_time()
    STEPS[name](folder)
    own = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps(own | {"mib": peak_mib()}))


def peak_mib() -> float:
    """Largest resident set of this program; what ``getrusage`` says begins with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def run_step(name: str, folder: Path, limit_s: float) -> str:
    """Cells of the table for a step, or what became of it."""
    command = [sys.executable, __file__, "--folder", str(folder), "--only", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {limit_s:.0f} | | "
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return f"{last[:80]} | | "
    figures = json.loads(done.stdout.splitlines()[-1])
    return f"{figures['cpu']:.1f} | {figures['wall']:.1f} | {figures['mib']:,.0f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--slides", type=int, default=8000)
    parser.add_argument("--steps", nargs="*", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--folder", type=Path, help="keep the generated folder here and use it again")
    parser.add_argument("--limit_s", type=float, default=600, help="seconds that one step may take")
    parser.add_argument("--only", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST_FILE).is_file():
            make_folder(folder, arguments.rows, arguments.slides)
        print("| step | CPU s | wall s | peak MiB |\n|---|---|---|---|", flush=True)
        for name in arguments.steps:
            print(f"| {name} | {run_step(name, folder, arguments.limit_s)} |", flush=True)


if __name__ == "__main__":
    main()
