"""Time and memory from a slide's file to patients.csv and heat maps, by part.

A slide of 15,000 × 27,000 px at 0.5 µm/px is generated, half of it tissue, and predicted by MobileNetV2 students with
untrained weights at 224 px, unless `--slide` and `--run` name others. Speed only: nothing is learned and nothing meant.
Parts are the sums over threads, in seconds of computing (wall time says little on a machine with other work).

    python -m tests.benchmarks.bench_predict_slides --workers 2 --network student_0 ensemble
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdml_med.deploy.slides import one_slide, predicting
from kdml_med.keys import Task
from kdml_med.networks.cohort import build_cohort
from kdml_med.networks.registry import cohort_spec
from kdml_med.runs import RunDescription, checkpoint_path
from kdml_med.wsi import cutter
from tests.benchmarks.large_slides import write_large_slide

WIDTH, HEIGHT, MPP = 15_000, 27_000, 0.5


def write_untrained_run(run_dir: Path, version: str = "v2", side_px: int = 224) -> None:
    """A run of this version whose students know nothing."""
    cohort = build_cohort(version, use_teacher=False)
    spec = cohort_spec(version, task=Task.CLASSIFICATION)
    RunDescription(
        task=Task.CLASSIFICATION, version=version, networks=dict(zip(cohort.student_names, spec.students, strict=True)),
        classes=["MSS", "MSI"], image_size=side_px, fold=None, synthetic=True, seen_patients={"train": [], "val": []},
        kdml_med="0", tile_size_px=side_px, mpp=MPP, level="patient", aggregation="mean",
        ensemble_average="probabilities",
    ).write(run_dir)  # fmt: skip
    for name in cohort.student_names:
        path = checkpoint_path(run_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(cohort.networks[name].state_dict(), path)


class Parts:
    """Computing time of functions, summed over threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.peak: dict[str, float] = {}
        self._lock = threading.Lock()

    def watch(self, owner: Any, name: str, part: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                with self._lock:
                    self.seconds[part] += time.thread_time() - start
                    self.peak[part] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

        setattr(owner, name, watched)


def measure(slide: Path, run_dir: Path, network: str, workers: int, runtime: str) -> None:
    """Predict once in this process, and say what it took."""
    parts = Parts()
    parts.watch(predicting, "plan_classifier", "networks loaded and exported")
    parts.watch(one_slide.SlideCutter, "__init__", "overview and tissue")
    parts.watch(cutter.TileReader, "cut", "reading, judging, encoding")
    parts.watch(one_slide, "_image", "decoding again")
    parts.watch(one_slide.Classifier, "__call__", "networks")
    parts.watch(one_slide, "write_maps", "heat maps")
    parts.watch(one_slide, "_write_sheets", "tile sheets")
    parts.watch(predicting, "_write_tables", "tables")
    start, before = time.perf_counter(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        report = predicting.predict_slides(
            run_dir, [slide], folder, network=network, workers=workers, runtime=runtime, progress=False
        )
    wall, after = time.perf_counter() - start, os.times()
    computing = after.user + after.system - before.user - before.system
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    load = os.getloadavg()[0]
    print(f"\n{network}, {runtime}, {workers} workers: {report.tiles} tiles, {wall:.1f} s ({report.tiles / wall:.0f} "
          f"tiles/s), {computing:.1f} s of computing, peak {peak:.2f} GiB, load average {load:.1f}")  # fmt: skip
    print(*report.lines(), sep="\n")
    for part, seconds in parts.seconds.items():
        print(f"  {part:30s} {seconds:6.1f} s, peak until its end {parts.peak[part]:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--network", nargs="+", default=["student_0", "ensemble"])
    parser.add_argument("--runtime", nargs="+", default=["auto"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help="in this process, whose memory is told")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.slide, arguments.run, arguments.network[0], arguments.workers, arguments.runtime[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        slide, run_dir = arguments.slide or Path(folder, "generated.svs"), arguments.run or Path(folder, "run")
        if arguments.slide is None:
            write_large_slide(slide, WIDTH, HEIGHT, mpp=MPP, quality=80, radius=0.42)
        if arguments.run is None:
            write_untrained_run(run_dir)
        for runtime in arguments.runtime:
            for network in arguments.network:
                words = ["--slide", slide, "--run", run_dir, "--network", network, "--runtime", runtime]
                words += ["--workers", str(arguments.workers), "--measure"]
                module = "tests.benchmarks.bench_predict_slides"
                subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
