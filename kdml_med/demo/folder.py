"""What all generated cohorts share: a folder that belongs to one set of settings, and work done in parallel."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdml_med import workers as pool
from kdml_med.errors import InputError, foreseen
from kdml_med.program import progress_bar, usable_cores
from kdml_med.storage.files import write_atomically
from kdml_med.storage.reading import read_json

SETTINGS_FILE = "demo.json"


def claim_folder(out_dir: Path, settings: dict[str, Any], readme: str) -> None:
    """Write the settings and README.txt into a new folder, or check that an old one was made with the same settings.

    Args:
        out_dir: folder to create or to complete.
        settings: everything that decides the bytes; JSON types.
        readme: text of README.txt.

    Raises:
        InputError: the folder holds something else or another cohort, or is a file.
    """
    path = out_dir / SETTINGS_FILE
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir} is a file, expected a folder: choose another --out.")
    if path.is_file():
        found = read_json(path, remedy=f"Remove {out_dir}, or choose another --out.")
        if found != settings:
            raise InputError(
                f"{out_dir} holds a cohort made with {found}, asked for {settings}: "
                "choose another --out, repeat the old settings, or remove the folder."
            )
    elif out_dir.is_dir() and any(out_dir.iterdir()):
        raise InputError(
            f"{out_dir} is not empty and holds no generated cohort: choose an empty or new folder for --out."
        )
    write_atomically(out_dir / "README.txt", readme.encode())
    write_atomically(path, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())


def make_missing(
    job: Callable[..., object],
    arguments: Sequence[tuple[Any, ...]],
    is_complete: Callable[..., bool],
    *,
    unit: str,
    workers: int,
    progress: bool,
) -> None:
    """Make the parts of a cohort that are not there yet, under a bar.

    Args:
        job: writes one part; a function that a process can import by name.
        arguments: of each part.
        is_complete: called with the arguments of a part: whether it is there.
        unit: what a part is called.
        workers: processes; 0 takes all cores.
        progress: show the bar.
    """
    missing = [each for each in arguments if not is_complete(*each)]
    done = len(arguments) - len(missing)
    with progress_bar(len(arguments), what="generating", unit=unit, done=done, show=progress) as bar:
        for _ in run_jobs(job, missing, workers):
            bar.update()


def check_numbers(option: str, size: int, fewest: int, why: str, *, seed: int, workers: int) -> None:
    """Refuse numbers that no cohort can be made with.

    Args:
        option: what patients or sequences are called on the command line.
        size: how many of them.
        fewest: that will do.
        why: so many are needed.
        seed: of the cohort.
        workers: processes.

    Raises:
        InputError: one of the numbers is out of range.
    """
    if size < fewest:
        raise InputError(f"{option} is {size}, expected at least {fewest}: {why}.")
    if size > 9999:
        raise InputError(f"{option} is {size}, expected at most 9999: patient names have four digits.")
    if seed < 0:
        raise InputError(f"--seed is {seed}, expected 0 or more.")
    if workers < 0:
        raise InputError(f"--workers is {workers}, expected 0 (all cores) or more.")


def run_jobs(job: Callable[..., object], arguments: Sequence[tuple[Any, ...]], workers: int) -> Iterator[None]:
    """Run one function on many arguments, and come back whenever one is done.

    Args:
        job: a function that a process can import by name.
        arguments: positional arguments of each call.
        workers: processes; 0 takes all cores.

    Raises:
        RuntimeError: one could not be done, for which there is no good reason; it ends all of them.
    """
    processes = workers or usable_cores()
    work = partial(_call, job)
    for _, failure in pool.run_jobs(
        arguments, work, processes=processes, on_progress=lambda _: None, crashed="its process ended at once"
    ):
        if failure is not None:
            raise RuntimeError(failure)
        yield


def _call(job: Callable[..., object], arguments: tuple[Any, ...], _: Callable[[int], None]) -> str | None:
    try:
        job(*arguments)
    except InputError:
        raise
    except OSError as error:  # there is nothing to read, so the output cannot be written
        raise foreseen(error) or error from error
    except Exception:  # a generator has no input that could be at fault: the whole story is wanted
        return traceback.format_exc()
    return None
