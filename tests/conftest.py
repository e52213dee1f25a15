"""What holds for all tests: the same random numbers in each, whichever ran before it."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.examples import PROFILE

# Programs that are started in the background, or by nohup, are told to ignore Ctrl-C; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.load_profile(PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed before the fixtures of a test: networks that it builds start with the same weights every time."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tiles_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classifiers small enough to be trained in a test; its dataset is the folder ``tiles`` beside it."""
    from kdml_med import api
    from tests.networks.tiny import TINY
    from tests.synthetic_tiles import write_tile_dataset

    folder = tmp_path_factory.mktemp("tiles_run")
    tiles = write_tile_dataset(folder / "tiles")
    networks = {"teacher": TINY, "students": [TINY, TINY]}
    return api.train(tiles, folder / "run", max_epochs=1, device="cpu", **networks).folder


@pytest.fixture(scope="session")
def frames_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise of detectors, beside its dataset ``frames``."""
    from kdml_med import api
    from tests.synthetic_frames import write_frame_dataset

    folder = tmp_path_factory.mktemp("frames_run")
    frames = write_frame_dataset(folder / "frames", frames=6)
    detector = {"name": "retinanet", "body": "mobilenet_v2", "last_block": 13, "width": 16, "head_convs": 1}
    networks = {"teacher": detector, "students": [detector]}
    how = {"max_epochs": 1, "device": "cpu", "image_size": 64, "batch_size": 4, "gamma": 0.0}
    return api.train(frames, folder / "run", **networks, **how).folder
