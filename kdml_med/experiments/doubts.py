"""In how many trainings of each arm something makes them poor witnesses, see ``kdml_med.report.doubts``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdml_med.experiments.results import Results
from kdml_med.report.doubts import DOUBTS, WARNINGS
from kdml_med.runs import METRICS_FILE, TRAIN_AGAIN, read_run_json
from kdml_med.storage.reading import take

_COLUMNS = {"version": "str", "arm": "str", "doubt": "str", "trainings": "Int64", "of": "Int64"}


def doubt_table(results: Results) -> pd.DataFrame:
    """Trainings that warned at their end.

    Returns:
        One row for each version, doubt and arm of which at least one training warned, in the order of ``DOUBTS`` and of
        the plan: how many did, ``of`` how many that are whole.

    Raises:
        InputError: metrics.json of a training is damaged.
    """
    rows: list[dict[str, Any]] = []
    for version in results.plan.versions:
        warned = {arm: _warnings(results, version, arm) for arm in results.arms}
        for doubt in DOUBTS:
            for arm, found in warned.items():
                count = sum(doubt in one for one in found)
                if count:
                    rows.append({"version": version, "arm": arm, "doubt": doubt, "trainings": count, "of": len(found)})
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def _warnings(results: Results, version: str, arm: str) -> list[dict[str, str]]:
    """What each whole training of an arm warned of."""
    found = []
    for cell in results.whole_cells(version, arm):
        folder = results.folder(cell)
        content = {WARNINGS: {}} | read_run_json(folder, METRICS_FILE)  # earlier versions did not ask
        found.append(take(content, WARNINGS, dict[str, str], folder / METRICS_FILE, remedy=TRAIN_AGAIN))
    return found
