"""Runs of networks that are not trained: they tell how green a tile is, so steeply that any change of pixels shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from kdml_med.deploy.slides.predicting import predict_slides
from kdml_med.keys import Task
from kdml_med.runs import RunDescription, checkpoint_path

GAINS = {"teacher": 9.0, "student_0": 7.0, "student_1": 5.0}
TILE_PX, MPP = 64, 0.5


class GreenNetwork(nn.Module):
    """Logit of the positive class: how much greener the upper half of a tile is than the rest of slides, as a rule."""

    def __init__(self, num_classes: int = 2, *, gain: float) -> None:
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))

    def forward(self, image: Tensor) -> Tensor:
        green = image[:, 1, : image.shape[2] // 2].mean(dim=(1, 2)) + 0.2
        return torch.stack([-self.gain * green, self.gain * green], dim=1)


def write_run(folder: Path, *, gains: dict[str, float] | None = None, **changes: Any) -> Path:
    found = gains or GAINS
    name = f"{GreenNetwork.__module__}.{GreenNetwork.__name__}"
    run = RunDescription(
        task=Task.CLASSIFICATION, version="v2", classes=["MSS", "MSI"], image_size=TILE_PX, fold=None, synthetic=True,
        seen_patients={"train": [], "val": []}, kdml_med="0", tile_size_px=TILE_PX, mpp=MPP, level="patient",
        aggregation="mean", ensemble_average="probabilities",
        networks={network: {"name": name, "gain": gain} for network, gain in found.items()},
    )  # fmt: skip
    replace(run, **changes).write(folder)
    for network, gain in found.items():
        path = checkpoint_path(folder, network)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(GreenNetwork(gain=gain).state_dict(), path)
    return folder


def predict(run_dir: Path, inputs: Path | list[Path], out: Path, **more: Any) -> Any:
    paths = inputs if isinstance(inputs, list) else [inputs]
    return predict_slides(run_dir, paths, out, **({"progress": False, "maps": False, "runtime": "torch"} | more))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiles_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "tiles.parquet").set_index("sample_id")
