"""Trainings that end as a killed process does: at a known moment, and without a word.

    python -m tests.kills 5 run --config_file …

is ``python -m monai.bundle run …`` until SIGKILL meets it within its fifth optimizer step.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ignite.engine import Events
from torch.optim.optimizer import register_optimizer_step_post_hook

from kdml_med.engines import KDMLTrainer

REPOSITORY = Path(__file__).resolve().parents[1]


class Killed(BaseException):
    """Ends a training as a signal does, between two lines."""


def train_until(trainer: KDMLTrainer, stop: int | None) -> None:
    """Train, or go on, with a clock that goes a minute per batch; killed behind iteration ``stop``.

    Raises:
        Killed: it was.
    """

    def kill() -> None:
        if trainer.state.iteration == stop:
            raise Killed

    trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    clock = SimpleNamespace(monotonic=lambda: 60.0 * trainer.state.iteration)
    with mock.patch("kdml_med.handlers.checkpoint.time", clock):
        trainer.run()


def kill_in_step(step: int, words: Sequence[str | Path], run_dir: Path) -> None:
    """Start a training with a bundle, which saves behind every batch; its process is killed in that step, from 1."""
    command = [sys.executable, "-m", "tests.kills", str(step), *map(str, words), "--checkpoint_interval", "0.0000001"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == -signal.SIGKILL, process.stdout[-2000:] + process.stderr[-4000:]
    assert (run_dir / "checkpoints/last.pt").is_file()


def _main() -> None:
    left = int(sys.argv.pop(1))

    def kill(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(kill)
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
