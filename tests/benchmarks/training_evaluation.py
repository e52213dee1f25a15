"""How long detectors take to be evaluated: what ``bench_training --evaluation`` prints."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import cast

import torch
from ignite.engine import Events
from monai.engines import IterationEvents
from monai.transforms import Compose
from torch import Tensor, nn

from kdml_med.data import FrameDataset, NormalizeColourd, PlaceFrame, SampleLoader
from kdml_med.engines import DetectionEvaluator
from kdml_med.handlers import DetectionMetrics
from kdml_med.keys import Task
from kdml_med.networks import Cohort, build_cohort
from kdml_med.networks.devices import compute_repeatably, one_thread
from kdml_med.networks.registry import cohort_spec
from tests.synthetic_frames import write_frame_dataset

PATIENTS, FRAMES, STUDENTS, SIDE_PX, BATCH = 20, 10, 3, 128, 16
"""200 frames, and a teacher beside the students."""
AIM_S = 10.0


class Part(StrEnum):
    """What an evaluation spends its time on."""

    READING = "reading"
    NETWORKS = "networks"
    SUPPRESSION = "suppression"
    """From what networks say about anchors to detections, of each network and of the ensemble."""
    METRICS = "metrics"
    """Detections as tables, thresholds and figures."""


_ENDS = {
    Events.GET_BATCH_COMPLETED: Part.READING,
    IterationEvents.FORWARD_COMPLETED: Part.NETWORKS,
    IterationEvents.MODEL_COMPLETED: Part.SUPPRESSION,
    Events.COMPLETED: Part.METRICS,
}


class PartTimes:
    """CPU seconds of an evaluator's parts; attach it behind the figures."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Part, 0.0)
        self._last = 0.0

    def attach(self, engine: DetectionEvaluator) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._mark, None)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._mark, Part.METRICS)
        for event, part in _ENDS.items():
            engine.add_event_handler(event, self._mark, part)

    def _mark(self, part: Part | None) -> None:
        now = time.process_time()
        if part is not None:
            self.seconds[part] += now - self._last
        self._last = now


def detectors(version: str) -> Cohort:
    """Untrained networks of a version, the students in turn until there are enough, that doubt every anchor.

    So every frame has as many detections as it may: suppression and figures have the most to do.
    """
    named = cohort_spec(version, task=Task.DETECTION).students
    students = [named[number % len(named)] for number in range(STUDENTS)]
    cohort = build_cohort(version, task=Task.DETECTION, num_classes=1, students=students)
    for name, module in cohort.named_modules():
        if name.endswith("cls_logits") and isinstance(module, nn.Conv2d):
            nn.init.zeros_(cast(Tensor, module.bias))
    return cohort.eval()


def write_frames(folder: Path) -> Path:
    """The frames, one sequence for each patient."""
    splits = {"T": "train", "E": "test"} | {f"V{number}": "val" for number in range(PATIENTS)}
    return write_frame_dataset(folder, splits=splits, frames=FRAMES, height=SIDE_PX, width=SIDE_PX)


def evaluate(cohort: Cohort, dataset: FrameDataset) -> dict[Part, float]:
    """CPU seconds of the parts of an evaluation, by one thread."""
    times, metrics = PartTimes(), DetectionMetrics()
    evaluator = DetectionEvaluator(
        device=torch.device("cpu"),
        val_data_loader=SampleLoader(dataset, batch_size=BATCH, num_workers=0, device="cpu"),
        network=cohort,
        key_val_metric={metrics.key: metrics},
        val_handlers=[times],
    )
    with one_thread():
        evaluator.run()
    return times.seconds


def print_evaluation(versions: Sequence[str], rounds: int) -> None:
    """Medians over the rounds, a row for each version."""
    compute_repeatably(0)
    print(
        f"| version | CPU s of {PATIENTS * FRAMES} frames, {STUDENTS + 1} networks, {SIDE_PX} px | "
        f"{' | '.join(Part)} | wanted | reached |\n" + "|---" * (4 + len(Part)) + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        transform = Compose([PlaceFrame(SIDE_PX), NormalizeColourd(keys="image")])
        dataset = FrameDataset(write_frames(Path(folder)), split="val", transform=transform)
        for version in versions:
            print(f"evaluation, {version}", file=sys.stderr)
            cohort = detectors(version)
            print(row(version, [evaluate(cohort, dataset) for _ in range(rounds)]), flush=True)


def row(version: str, measured: Sequence[dict[Part, float]]) -> str:
    """Of the table: the sum, and the share of each part in it."""
    total = statistics.median(sum(each.values()) for each in measured)
    shares = [f"{statistics.median(each[part] / sum(each.values()) for each in measured):.0%}" for part in Part]
    return f"| {version} | {total:.1f} | {' | '.join(shares)} | < {AIM_S:.0f} | {'yes' if total < AIM_S else 'no'} |"
