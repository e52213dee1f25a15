"""One kind of progress bar for all long work."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, *, what: str, unit: str, done: int = 0, show: bool = True) -> tqdm[Any]:
    """Bar on standard error: it moves on a terminal, and adds a line now and then to a log file.

    Args:
        total: number of units, those done before included.
        what: shown before the bar.
        unit: name of one unit.
        done: units that were done before.
        show: False for no bar at all.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=done, desc=what, unit=unit, disable=not show, mininterval=interval)
