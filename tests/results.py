"""Results of a run as they are the same whenever and however it was trained."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMES = ("speed/", "training_speed")
"""How the names begin of what tells how long something took, which is never the same twice."""


def lasting(path: Path) -> bytes:
    """Bytes of a result file; of metrics.json without how long the training took."""
    if path.name != "metrics.json":
        return path.read_bytes()
    content = json.loads(path.read_text())
    return json.dumps({name: value for name, value in content.items() if not name.startswith(TIMES)}).encode()


def points(log_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve of TensorBoard; of those that tell times, the steps alone."""
    found = {}
    for run in sorted({path.parent for path in log_dir.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        for tag in sorted(events.Tags()["scalars"]):
            timed = tag.startswith(TIMES)
            # Files are read by name, which for those of one second and process does not tell which one came first.
            own = sorted((point.step, 0.0 if timed else point.value) for point in events.Scalars(tag))
            found[f"{run.relative_to(log_dir)}/{tag}"] = own
    return found
