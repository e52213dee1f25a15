"""How a training computes: as it was begun, as it is asked for, or by the rule; and the table for one machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kdml_med.bundle.resuming import holds_run
from kdml_med.bundle.settings import Settings
from kdml_med.bundle.training import ACCELERATION
from kdml_med.data.frames import input_size
from kdml_med.engines.acceleration import Acceleration
from kdml_med.engines.precision import choose_arithmetic, measure_steps, ways_to_compute
from kdml_med.engines.processes import from_main
from kdml_med.errors import ExitCode, InputError
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.devices import check_precision
from kdml_med.report.tables import text_table
from kdml_med.runs import SETTINGS_FILE, TRAIN_AGAIN, read_run_json
from kdml_med.storage.reading import damaged, take

logger = logging.getLogger(__name__)

_UNKNOWN_PX = 0


def build_acceleration(
    settings: Settings, cohort: Cohort, *, image_size: int | Sequence[int] | None = None
) -> Acceleration:
    """What makes the steps of a training fast; says on screen how is computed.

    A run that is continued computes as it was begun, also on another machine. With ``--precision measure`` a table of
    this machine is printed instead, and the program ends.

    Args:
        settings: of the config.
        cohort: as it is trained.
        image_size: side, or height and width, of what the networks see, pixels; None where it is not known.

    Raises:
        InputError: the device cannot compute as it is asked for or as the run was begun, or two settings exclude each
            other.
        SystemExit: the table was printed.
    """
    size = input_size(image_size or _UNKNOWN_PX)
    if settings["compile"] and cohort.feature_strides:
        raise InputError("--compile does not go with links by features, which look into networks: leave it out.")
    if settings["precision"] == "measure":
        print(f"\n{measured_table(cohort, device=settings['device'], batch_size=settings['batch_size'], size=size)}\n")
        raise SystemExit(int(ExitCode.OK))
    run_dir = Path(settings["run_dir"])
    kept = _kept(run_dir) if holds_run(run_dir) else None
    # All processes compute alike, whatever machines they are on.
    chosen = from_main(_choose(settings, cohort, min(size)) if kept is None else kept)
    with damaged(run_dir / SETTINGS_FILE, remedy=TRAIN_AGAIN):
        acceleration = Acceleration(
            settings["device"], **chosen, checkpoint_activations=settings["checkpoint_activations"]
        )
    check_precision(acceleration.precision, settings["device"])
    reason = "as the run was begun" if kept is not None else f"{settings['device']}, {min(size)} px"
    logger.info("Computed in %s (%s)", _in_words(acceleration, cohort.names), reason)
    return acceleration


def _kept(run_dir: Path) -> dict[str, Any]:
    """What a run recorded, by argument of ``Acceleration``."""
    path, content = run_dir / SETTINGS_FILE, read_run_json(run_dir, SETTINGS_FILE)
    if ACCELERATION in content:
        kept: dict[str, Any] = take(content, ACCELERATION, dict[str, Any], path, remedy=TRAIN_AGAIN)
        return kept
    # Earlier versions computed in float32, or, when told so, in MONAI's mixed precision.
    knobs = take(content, "knobs", dict[str, Any], path, remedy=TRAIN_AGAIN)
    return {"precision": "fp16" if knobs.get("amp") else "fp32"}


def _choose(settings: Mapping[str, Any], cohort: Cohort, side_px: int) -> dict[str, Any]:
    """What settings say, and for the rest the rule, by argument of ``Acceleration``."""
    best = {
        name: choose_arithmetic(network, device=settings["device"], side_px=side_px)
        for name, network in cohort.networks.items()
    }
    precision, in_float32 = settings["precision"], []
    if precision == "auto":
        in_float32 = [name for name, way in best.items() if way.precision == "fp32"]
        precision = next((way.precision for way in best.values() if way.precision != "fp32"), "fp32")
    layout = settings["memory_format"]
    return {
        "precision": precision,
        "in_float32": [] if precision == "fp32" else in_float32,
        "memory_format": next(iter(best.values())).memory_format if layout == "auto" else layout,
        "compile": settings["compile"],
    }


def _in_words(acceleration: Acceleration, names: Sequence[str]) -> str:
    """Such as "teacher bf16, student_0 fp32; channels_last"."""
    used = {name: "fp32" if name in acceleration.in_float32 else acceleration.precision for name in names}
    each = ", ".join(f"{name} {precision}" for name, precision in used.items())
    words = [each if len(set(used.values())) > 1 else acceleration.precision, acceleration.memory_format]
    return "; ".join(words + ["compiled"] * acceleration.compile)


def measured_table(cohort: Cohort, *, device: str, batch_size: int, size: tuple[int, int]) -> str:
    """What a step of each network costs on this machine in every way that it can compute, and what the rule takes.

    Args:
        cohort: networks by name.
        device: to compute on.
        batch_size: images of a batch.
        size: (height, width) of images, pixels.
    """
    ways = ways_to_compute(device)
    networks = dict(cohort.networks.items())
    seconds = measure_steps(networks, ways, device=device, batch_size=batch_size, size=size)
    rows = []
    for name, network in networks.items():
        chosen = choose_arithmetic(network, device=device, side_px=min(size))
        rows.append([name, *(f"{seconds[name][way] * 1e3:.1f}" for way in ways), str(chosen)])
    threads = f", threads: {torch.get_num_threads()}" if torch.device(device).type == "cpu" else ""
    heading = (
        f"Forward and backward pass of each network alone, milliseconds, the fastest of several; {device}{threads}, "
        f"batches of {batch_size} images of {size[0]} x {size[1]} px:"
    )
    return f"{heading}\n\n{text_table(['network', *map(str, ways), '--precision auto'], rows)}"
