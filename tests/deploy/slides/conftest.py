from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.slides.green import write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("green") / "run")
