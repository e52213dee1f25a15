import multiprocessing
import os
from dataclasses import dataclass

import pytest

from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.pool import run_jobs
from tests.synthetic_slides import write_slide


@dataclass(frozen=True)
class CrashingJob(SlideJob):
    """Takes down the process that receives it, as a fault in a decoder does."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.slow  # three pools of fresh processes
def test_crash_of_a_decoder_costs_one_slide(tmp_path):
    jobs = []
    for name in "ab":
        write_slide(tmp_path / f"{name}.svs", width=1200, height=1000)
        jobs.append(SlideJob(tmp_path / f"{name}.svs", name, name))
    jobs.insert(1, CrashingJob(tmp_path / "c.svs", "c", "c"))
    counts = []
    outcomes = list(run_jobs(jobs, tmp_path / "out", TilingOptions(tile_size_px=64), 2, counts.append))
    failures = {outcome.job.slide_id: outcome.failure for outcome in outcomes}
    assert failures == {"a": None, "b": None, "c": "the reader crashed on this file"}
    assert sum(counts) > 0
    assert not multiprocessing.active_children()
