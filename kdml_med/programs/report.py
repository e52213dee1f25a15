"""A page about a run, or about a folder of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from kdml_med import api
from kdml_med.errors import ExitCode, InputError
from kdml_med.experiments import __main__ as experiments
from kdml_med.experiments.plan import PLAN_FILE
from kdml_med.keys import Task
from kdml_med.networks.registry import NetworkSpec, architecture_name
from kdml_med.report.run import write_run_report
from kdml_med.runs import COHORT_FILE, LOSSES_FILE, METRICS_FILE, read_losses, read_run_json

_TASKS = {Task.CLASSIFICATION: "classification of tiles", Task.DETECTION: "detection of polyps"}


def report(
    folder: Annotated[
        Path, Argument(metavar="DIR", help="Folder of a run, or results folder of experiments.", show_default=False)
    ],
    speed: Annotated[
        bool | None, Option(help="Experiments: measure the latency anew, or not at all; else what is not known yet.")
    ] = None,
) -> ExitCode:
    """Write report.html into the folder: tables, curves and settings on one page that needs nothing else."""
    if (folder / PLAN_FILE).is_file():
        return experiments.report(folder, speed=speed)
    if not (folder / COHORT_FILE).is_file():
        raise InputError(
            f"{folder} holds neither a run ({COHORT_FILE}) nor experiments ({PLAN_FILE}): train, or run a plan first."
        )
    run = api.load_run(folder)
    if not run.metrics:
        raise InputError(f"{folder} is a training that is not finished: go on with the same command of training.")
    losses = read_losses(folder) if (folder / LOSSES_FILE).is_file() else None
    files = write_run_report(
        folder,
        name=folder.resolve().name,
        facts=_facts(run),
        evaluations=_evaluations(run),
        losses=losses,
        settings=run.settings,
        synthetic=run.description.synthetic,
    )
    print(f"Written to {folder}: {', '.join(files)}")
    return ExitCode.OK


def _facts(run: api.Run) -> dict[str, str]:
    description = run.description
    networks = [f"{name}: {_in_words(description.networks[name])}" for name in description.names]
    return {
        "task": _TASKS[run.task],
        "classes": ", ".join(description.classes),
        "version": description.version,
        "networks": "; ".join(networks),
        "epoch of the best weights": str(run.metrics.get("best_epoch", "")),
        "kdml_med": description.kdml_med,
    }


def _in_words(spec: NetworkSpec) -> str:
    """A network's architecture and what its builder is told beside it."""
    told = {} if isinstance(spec, str) else {name: value for name, value in spec.items() if name != "name"}
    details = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    return f"{architecture_name(spec)} ({details})" if details else architecture_name(spec)


def _evaluations(run: api.Run) -> dict[str, dict[str, Any]]:
    """Figures on the validation split, and those of every evaluation that lies in the run."""
    found = {"Validation split, on which the best epoch was chosen": run.metrics}
    for path in sorted(run.folder.glob(f"evaluation_*/{METRICS_FILE}")):
        name = path.parent.name.removeprefix("evaluation_")
        found[f"Evaluation: {name}"] = read_run_json(path.parent, METRICS_FILE)
    return found
