"""Run folders with untrained networks, as far as exporting needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdml_med.data.selection import select_rows
from kdml_med.keys import Task
from kdml_med.networks.cohort import build_cohort
from kdml_med.runs import SETTINGS_FILE, RunDescription, checkpoint_path, hashed_patient
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import read_info
from tests.synthetic_tiles import CLASSES

SHORT = {"name": "mobilenet_v2", "last_block": 3}
SHORTER = {"name": "mobilenet_v2", "last_block": 2}


class Moody(nn.Module):
    """Answers dark images in another way than bright ones, which an exporter cannot know."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits if float(x.mean()) < -1 else -3 * logits


class Stubborn(nn.Module):
    """Cannot be traced."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not while anybody watches")
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def write_run(
    folder: Path,
    dataset_dir: Path,
    *,
    teacher: Any = SHORT,
    students: tuple[Any, ...] = (SHORTER, SHORTER),
    seed: int = 0,
    **described: Any,
) -> Path:
    """Write cohort.json and checkpoints of networks that were never trained, "seen" as the splits say."""
    cohort = build_cohort(teacher=teacher, students=list(students), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name in cohort.names:
        network = cohort.networks[name]
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):  # as uneven as training leaves them
                part.running_mean.normal_(0, 0.2, generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
            if isinstance(part, nn.Linear):
                part.weight.data.normal_(0, 1, generator=generator)
        path = checkpoint_path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    specs = {"teacher": teacher} | {f"student_{number}": spec for number, spec in enumerate(students)}
    info = read_info(dataset_dir)
    seen = {
        part: sorted({hashed_patient(name) for name in select_rows(dataset_dir, info, part, None)["patient_id"]})
        for part in ("train", "val")
    }
    values = {
        "task": Task.CLASSIFICATION, "version": "v1", "networks": specs, "classes": CLASSES, "image_size": 32,
        "fold": None, "synthetic": True, "seen_patients": seen, "kdml_med": "0.1.0", "tile_size_px": 32, "mpp": 1.0,
        "level": "patient", "aggregation": "mean", "ensemble_average": "probabilities",
    }  # fmt: skip
    write_json(folder / SETTINGS_FILE, {})
    RunDescription(**(values | described)).write(folder)
    return folder
