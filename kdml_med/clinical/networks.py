"""What the networks of a run are, and what each costs in use: parameters, bytes and milliseconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdml_med.clinical.study import Study
from kdml_med.data.frames import input_size
from kdml_med.deploy.speed import REPEATS, device_name, measure_latency
from kdml_med.keys import NetworkName, network_order
from kdml_med.networks.registry import architecture_words
from kdml_med.report.wording import ENSEMBLE_COST, figure, if_busy
from kdml_med.runs import checkpoint_path, load_network
from kdml_med.words import counted


@dataclass(frozen=True)
class Costs:
    """What networks cost in use, by network; the ensemble costs what its students cost together.

    Attributes:
        described: architecture.
        parameters: number of weights.
        megabytes: of the checkpoints of the weights.
        milliseconds: for one image; empty where it was not measured.
        speed: where and how that was measured; empty where it was not.
    """

    described: dict[str, str]
    parameters: dict[str, int]
    megabytes: dict[str, float]
    milliseconds: dict[str, float]
    speed: dict[str, Any]

    @property
    def note(self) -> str:
        """What the numbers are, for people."""
        if not self.milliseconds:
            return f"{ENSEMBLE_COST} The latency was not measured."
        height, width = self.speed["image_size"]
        return (
            f"{ENSEMBLE_COST} Latency: median of {self.speed['repeats']} images of {height} × {width} px, one at a "
            f"time, on {self.speed['device']} with {counted(self.speed['threads'], 'thread')}; without reading and "
            f"scaling.{if_busy(self.speed['cpu_share'])}"
        )

    def cells(self, network: str) -> list[str]:
        """Cells of a table: architecture, parameters, MB and milliseconds."""
        return [
            self.described.get(network, ""),
            f"{self.parameters[network]:,}" if network in self.parameters else "–",
            figure(self.megabytes[network], 2) if network in self.megabytes else "–",
            figure(self.milliseconds[network], 1) if network in self.milliseconds else "–",
        ]


COST_COLUMNS = ["architecture", "parameters", "MB on disk", "ms per image"]


def count_costs(study: Study, earlier: Mapping[str, Any], *, speed: bool | None = None) -> Costs:
    """Costs of every network of a run.

    Args:
        study: of the run.
        earlier: "speed" and "milliseconds" of an earlier report; empty for none.
        speed: measure the latency anew, or not at all; None measures what is not known yet.
    """
    names = study.description.names
    students = [name for name in names if name != NetworkName.TEACHER]
    members = {name: [name] for name in names} | ({NetworkName.ENSEMBLE.value: students} if len(students) > 1 else {})
    found = study.validation.metrics["networks"]
    own = {name: checkpoint_path(study.folder, name) for name in names}
    sizes = {name: path.stat().st_size / 1e6 for name, path in own.items() if path.is_file()}
    milliseconds, how = _latency(study, earlier, speed, missing=len(sizes) < len(names))
    return Costs(
        described={name: architecture_words(study.description.networks[name]) for name in names}
        | ({NetworkName.ENSEMBLE.value: f"{len(students)} students together"} if len(students) > 1 else {}),
        parameters={
            name: int(found[name]["parameters"]) for name in found if found[name].get("parameters") is not None
        },
        megabytes={
            name: sum(sizes[part] for part in parts) for name, parts in members.items() if set(parts) <= set(sizes)
        },
        milliseconds=milliseconds,
        speed=how,
    )


def _latency(
    study: Study, earlier: Mapping[str, Any], speed: bool | None, *, missing: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds by network, and how they were measured: now, or by an earlier report on the same processor."""
    known = earlier.get("milliseconds") or {}
    how = earlier.get("speed") or {}
    threads = torch.get_num_threads()
    here: dict[str, Any] = {"device": device_name("cpu"), "threads": threads}
    if speed is False or missing:
        return {}, {}
    if speed is None and known and all(how.get(name) == value for name, value in here.items()):
        return dict(known), dict(how)
    networks = {name: load_network(study.folder, name) for name in sorted(study.description.names, key=network_order)}
    size = study.description.image_size
    wall, cpu = time.perf_counter(), time.process_time()
    measured = measure_latency(networks, task=study.description.task, image_size=size, threads=threads)
    share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return measured, here | {
        "image_size": list(input_size(size)),
        "repeats": REPEATS,
        "cpu_share": round(min(share, 1.0), 2),
    }
