"""Size and speed of exported classifiers against their teacher, in every format and runtime, in one run.

    python -m tests.benchmarks.bench_export [--versions v1 v2] [--size 224] [--batch 1] [--rounds 15]

The networks are untrained: figures are of size and speed only. The table is printed as docs/results.md has it. Two
versions take about a minute and a half on an idle machine; others on it cost integer code more than the eager teacher.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdml_med.deploy.export.formats import to_onnx, to_torchscript
from kdml_med.deploy.export.int8 import quantize
from kdml_med.deploy.export.modules import ExportedClassifier
from kdml_med.deploy.export.runtimes import Answer, eager_answer, load_answer, runtimes_of
from kdml_med.deploy.export.speed_table import Entry, measure
from kdml_med.networks.cohort import build_cohort
from tests.synthetic_tiles import tile_pixels

CALIBRATION_TILES = 4  # ranges do not matter to the speed


def entries_of(name: str, module: ExportedClassifier, folder: Path, size: int) -> list[tuple[Entry, Answer]]:
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    generator = np.random.default_rng(0)
    images = np.stack([tile_pixels(bool(place % 2), generator, size) for place in range(CALIBRATION_TILES)])
    endings = {"checkpoint": ".pt", "torchscript": ".ts", "onnx": ".onnx", "onnx-int8": ".int8.onnx"}
    files = {form: folder / f"{name}{ending}" for form, ending in endings.items()}
    torch.save(module.networks.state_dict(), files["checkpoint"])
    to_torchscript(module, example, files["torchscript"])
    to_onnx(module, example, files["onnx"])
    quantize(files["onnx"], files["onnx-int8"], images)
    entries = [(Entry(name, "checkpoint", "eager", files["checkpoint"].stat().st_size), eager_answer(module))]
    for form in ("torchscript", "onnx", "onnx-int8"):
        for runtime in runtimes_of(files[form]):
            entry = Entry(name, form, runtime, files[form].stat().st_size)
            entries.append((entry, load_answer(files[form], runtime)))
    return entries


def markdown(speed: dict[str, Any]) -> str:
    """Rows of docs/results.md."""
    lines = ["| network | format | runtime | MB | times smaller | tiles/s | times as fast as the eager teacher |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in speed["rows"]:
        low, high = row["times_as_fast_quartiles"]
        size, rate = f"{row['size_bytes'] / 1e6:.2f}", f"{row['images_per_second']:.1f}"
        times = f"{row['times_as_fast']:.1f} ({low:.1f} – {high:.1f})"
        names = f"| {row['network']} | `{row['format']}` | {row['runtime']} "
        lines.append(f"{names}| {size} | {row['times_smaller']:.1f} | {rate} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", nargs="+", default=["v1", "v2"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for version in options.versions:
        cohort = build_cohort(version)
        with tempfile.TemporaryDirectory() as folder:
            entries = [
                entry
                for name in ("teacher", "student_0")
                for entry in entries_of(
                    name, ExportedClassifier({name: cohort.networks[name]}), Path(folder), options.size
                )
            ]
            pixels = np.random.default_rng(0).integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
            speed = measure(
                entries, [pixels], unit="tile", figure="AUROC", input_size=options.size, rounds=options.rounds
            )
        what = f"{version}, untrained, {options.size} px, {options.batch} at a time, one thread of {speed['device']}"
        load = f"load {os.getloadavg()[0]:.1f}"
        print(f"\n{what}, processor time, {options.rounds} rounds in turns, {load}:\n\n{markdown(speed)}", flush=True)


if __name__ == "__main__":
    main()
