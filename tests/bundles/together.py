"""Processes that train together in a test, without a launcher; one server imports everything for all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from kdml_med.bundle.running import run_config


def train_in_processes(count: int, task: str, screens: Path, **settings: Any) -> list[str]:
    """Train as ``run_config`` does, in processes that are told of each other as torchrun tells them.

    Args:
        count: how many.
        task: "classification" or "detection".
        screens: folder for what each of them says.
        **settings: of the training.

    Returns:
        What each of them said.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # As torchrun does it: they meet at a port that is open already, so that nobody else can take it.
    meeting = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    screens.mkdir()
    paths = [screens / f"{rank}.txt" for rank in range(count)]
    workers = []
    for rank, path in enumerate(paths):
        told = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": meeting.port,
        }
        environment = {name: str(value) for name, value in told.items()}
        environment |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        workers.append(context.Process(target=_train, args=(path, environment, task, settings)))
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(200)
        assert [worker.exitcode for worker in workers] == [0] * count, "\n".join(path.read_text() for path in paths)
    finally:
        for worker in workers:
            worker.kill()
    return [path.read_text() for path in paths]


def _train(screen: Path, environment: dict[str, str], task: str, settings: dict[str, Any]) -> None:
    os.environ.update(environment)
    with screen.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        run_config(task, "train", **settings)
