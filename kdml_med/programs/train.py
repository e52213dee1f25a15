"""Train a cohort on a dataset folder."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from typer import Argument, Option

from kdml_med import api
from kdml_med.bundle.knobs import KNOBS
from kdml_med.engines.processes import is_main, launched
from kdml_med.errors import ExitCode, InputError
from kdml_med.program import usable_cores
from kdml_med.programs.knobs import with_knobs
from kdml_med.storage.manifest import read_info


def _train(
    data: Annotated[Path, Argument(help="Dataset folder with splits.", show_default=False)],
    run: Annotated[Path, Option(help="Folder of the run; the same one again goes on.", show_default=False)],
    processes: Annotated[
        int, Option(min=1, help="Processes that train together: one for each GPU, or parts of a CPU.")
    ] = 1,
    *,
    settings: dict[str, Any],
) -> ExitCode:
    """Train a teacher and its students at the same time; a training that was cut off goes on.

    Tiles give classifiers, frames give detectors. The same as the training command of the bundles, with the same
    settings.
    """
    if processes > 1 and launched() not in (1, processes):
        raise InputError(
            f"--processes {processes} starts processes, and {launched()} were started already: leave it out."
        )
    if processes > 1 and launched() == 1:
        read_info(data)  # what is wrong with it is said before anything is started
        return _launch(processes)
    api.train(data, run, **settings)
    if is_main():
        print(f"Next: kdml-med evaluate {run}")
    return ExitCode.OK


def _launch(count: int) -> ExitCode:
    """This command once more in each of several processes, by the launcher of torchrun.

    Raises:
        SystemExit: a process did not end well, with its exit code; it has said why.
        InputError: one was ended from outside.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    where = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"kdml_med_{os.getpid()}",
    )
    try:
        elastic_launch(where, sys.executable)("-m", "kdml_med.cli", *sys.argv[1:])
    except SignalException:  # which all of them got
        return ExitCode.INTERRUPTED
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise InputError(
                f"process {number} was ended from outside ({failure.signal_name()}), perhaps for want of memory: the "
                "same command goes on from the last checkpoint."
            ) from error
        raise SystemExit(failure.exitcode) from error
    return ExitCode.OK


_PLACES = ("dataset_dir", "run_dir")
train = with_knobs(
    _train, "train", dict.fromkeys(knob.name for knob in KNOBS if "train" in knob.stages and knob.name not in _PLACES)
)
