from pathlib import Path

import pytest

from tests.clinical.answered import many, write_evaluation, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run and its evaluation on test patients, on whom other thresholds would be better."""
    folder = write_run(tmp_path / "run", many("V"), train=["T00", "T01"])
    write_evaluation(folder / "evaluation_test", many("X", seed=1, shift=0.2), split="test")
    return folder
