"""Slides side by side on the cores of a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdml_med import workers as pool
from kdml_med.wsi.cutter import SlideJob, cut_slide
from kdml_med.wsi.options import TilingOptions
from kdml_med.wsi.slide import SlideError

_CRASHED = "the reader crashed on this file"


@dataclass(frozen=True)
class Outcome:
    """End of the work on one slide; ``failure`` is None when it is stored."""

    job: SlideJob
    failure: str | None


def run_jobs(
    jobs: Sequence[SlideJob], out_dir: Path, options: TilingOptions, workers: int, on_tiles: Callable[[int], None]
) -> Iterator[Outcome]:
    """Tile slides on some cores.

    As many slides as there are workers are tiled side by side; when there are fewer slides, each gets several threads.

    Args:
        jobs: slides to tile.
        out_dir: dataset folder.
        options: of the run.
        workers: cores to use.
        on_tiles: told from time to time how many more tiles were looked at.

    Yields:
        An outcome for each slide, as it ends.

    Raises:
        InputError: the output cannot be written.
    """
    processes = max(1, min(workers, len(jobs)))
    cut = partial(_cut, out_dir=out_dir, options=options, threads=max(1, workers // processes))
    for job, failure in pool.run_jobs(jobs, cut, processes=processes, on_progress=on_tiles, crashed=_CRASHED):
        yield Outcome(job, failure)


def _cut(
    job: SlideJob, on_tiles: Callable[[int], None], *, out_dir: Path, options: TilingOptions, threads: int
) -> str | None:
    try:
        cut_slide(job, out_dir, options, threads=threads, on_tiles=on_tiles)
    except SlideError as error:
        return str(error)
    return None
