"""Where the bundles lie: inside an installed package, or beside it in the repository."""

from __future__ import annotations

from pathlib import Path

from kdml_med.errors import InputError
from kdml_med.keys import Task

BUNDLES = {Task.CLASSIFICATION: "msi_kdml", Task.DETECTION: "polyp_kdml"}
"""Folder name of each task's bundle."""

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = _PACKAGE / "bundles"
"""Of a package that was built; data and runs never go there."""


def bundle_dir(task: Task | str) -> Path:
    """Folder of our bundle for a task, with ``configs/`` and ``docs/``.

    Raises:
        InputError: the installation lacks it.
    """
    name = BUNDLES[Task(task)]
    for folder in (INSTALLED, _PACKAGE.parent / "bundles"):
        if (folder / name / "configs" / "metadata.json").is_file():
            return folder / name
    raise InputError(f"bundle {name!r} is neither in {INSTALLED} nor beside the package: install kdml_med again.")
