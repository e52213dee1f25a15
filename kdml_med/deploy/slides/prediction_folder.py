"""The output folder of a prediction on slides: one run at a time, one set of networks and options, finished slides.

prediction.json                 what predicted what, and how (``PREDICTION_FILE``)
slides/<slide_id>/tiles.parquet places and probabilities of the tiles of a slide
slides/<slide_id>/slide.json    what is known of the slide; written last: a slide without it is not finished
slides/<slide_id>/…             pictures of the slide
patients.csv, slides.csv, tiles.parquet, failures.csv
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdml_med.deploy.pictures.heatmap import DISAGREEMENT_FILE, HEATMAP_FILE, LAYER_FILE, SHAPES_FILE
from kdml_med.deploy.pictures.tile_sheet import BOTTOM_FILE, TOP_FILE
from kdml_med.errors import InputError, one_line
from kdml_med.storage.files import Fingerprint, write_json, write_parquet
from kdml_med.storage.folder import Work
from kdml_med.storage.locks import Hold
from kdml_med.storage.manifest import FAILURES_FILE
from kdml_med.storage.reading import read_json
from kdml_med.storage.shards import Origin
from kdml_med.wsi.shards import SlideRecord

PREDICTION_FILE = "prediction.json"
SLIDES_DIR = "slides"
TILES_FILE = "tiles.parquet"
RECORD_FILE = "slide.json"
PROBABILITY = "probability_"
"""Columns of probabilities begin so, and end in the name of the network."""
DISAGREEMENT = "disagreement"
TABLES = ("patients.csv", "slides.csv", TILES_FILE, FAILURES_FILE)

_SLIDE_FILES = (
    RECORD_FILE,  # first to go: without it the slide does not count as finished
    *(TILES_FILE, HEATMAP_FILE, DISAGREEMENT_FILE, LAYER_FILE, SHAPES_FILE, TOP_FILE, BOTTOM_FILE),
)
_OTHER = "name another output folder"


@dataclass(frozen=True)
class Finished:
    """A slide that was predicted.

    Attributes:
        record: what is known of the slide.
        tiles: of tiles.parquet, without the columns that the label table decides.
        pictures: names of its pictures.
    """

    record: SlideRecord
    tiles: pd.DataFrame
    pictures: list[str] = field(default_factory=list)


def slide_dir(out_dir: Path, slide_id: str) -> Path:
    """Folder of what belongs to one slide."""
    return out_dir / SLIDES_DIR / slide_id


def discard_slide(out_dir: Path, slide_id: str) -> None:
    """Delete what was written about a slide; a file of somebody else stays."""
    folder = slide_dir(out_dir, slide_id)
    for name in _SLIDE_FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / f".{name}.part").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()


def write_slide(
    out_dir: Path, record: SlideRecord, tiles: pd.DataFrame, write_pictures: Callable[[Path], list[str]]
) -> None:
    """Write everything about a slide, what makes it finished last.

    Raises:
        InputError: it cannot be written.
    """
    folder = slide_dir(out_dir, record.slide_id)
    write_parquet(folder / TILES_FILE, tiles)
    pictures = write_pictures(folder)
    times = record.origin.times if record.origin else []
    content = {"record": record.to_content(), "times": times, "pictures": pictures}
    write_json(folder / RECORD_FILE, content)


class PredictionFolder:
    """An output folder that one run writes to; a context manager that holds the lock.

    Args:
        path: of the folder; made when absent.
        content: of prediction.json.
        same: names of what there has to be the same as in earlier runs.

    Raises:
        InputError: on entering: the folder is in use, holds something else, or a prediction by other networks or with
            other options. Nothing was written then.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], same: Sequence[str]) -> None:
        self.path, self._content, self._same = path, content, same
        self._hold: Hold | None = None

    def __enter__(self) -> PredictionFolder:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, and the output goes into a folder: {_OTHER}.")
        self._hold = Hold(self.path, "output folder")
        try:
            self._check()
        except BaseException:
            self._hold.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._hold is not None:
            self._hold.release()

    def _check(self) -> None:
        path = self.path / PREDICTION_FILE
        if not path.is_file():
            strangers = sorted(item.name for item in self.path.iterdir() if not item.name.endswith(".part"))
            if strangers:
                raise InputError(
                    f"{self.path} is not empty (it holds {strangers[0]}) and no prediction of slides: {_OTHER}."
                )
            return
        there = read_json(path, remedy=f"Delete the folder, or {_OTHER}.")
        for part in self._same:
            old, new = there.get(part), self._content[part]
            if old != new:
                raise InputError(f"{self.path} holds a prediction with {_tell_difference(part, old, new)}: {_OTHER}.")

    def finished(self) -> list[str]:
        """Sorted names of the slides that were predicted completely."""
        return sorted(path.parent.name for path in (self.path / SLIDES_DIR).glob(f"*/{RECORD_FILE}"))

    def read(self, slide_id: str) -> Finished:
        """What is known of a finished slide.

        Raises:
            InputError: a file is damaged.
        """
        folder = slide_dir(self.path, slide_id)
        remedy = f"Delete {folder} and run the same command again."
        content = read_json(folder / RECORD_FILE, remedy=remedy)
        try:
            record = content["record"]
            record["origin"] = Origin.from_content(record["origin"], content["times"])
            tiles = pd.read_parquet(folder / TILES_FILE)
            return Finished(SlideRecord.from_content(record), tiles, list(content["pictures"]))
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder} is damaged ({one_line(error)}). {remedy}") from error

    def plan(
        self, origins: Mapping[str, Origin], named: Collection[str], outdated: Callable[[Finished], str | None]
    ) -> Work:
        """Decide which slides are to be predicted, delete what was made from something else, and say what is to come.

        Args:
            origins: what each slide is read from; prediction.json is written when that is known.
            named: slides of this run, also those that cannot be used.
            outdated: why a slide from the same files has to be predicted anew; None when it has not.

        Raises:
            InputError: the folder holds slides that this run does not name. Nothing was deleted then.
        """
        there = self.finished()
        strangers = sorted(set(there) - set(named))
        if strangers:
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            raise InputError(
                f"{self.path} holds predictions of what is not among the inputs: {', '.join(strangers[:3])}{more}. "
                f"Name all slides in one run, or {_OTHER}."
            )
        write_json(self.path / PREDICTION_FILE, self._content)
        changes, work = (
            {name: self._compare(name, origins[name], outdated) for name in there if name in origins},
            Work(),
        )
        work.remade = {name: change for name, (change, _) in changes.items() if change is not None}
        work.unread = {name: files for name, (change, files) in changes.items() if change is None and files}
        work.pending = {name for name in origins if name not in changes or name in work.remade}
        if work.pending:
            for name in TABLES:  # nobody takes those of an earlier run for those of all slides
                (self.path / name).unlink(missing_ok=True)
        for name in work.pending:
            discard_slide(self.path, name)
        return work

    def _compare(
        self, name: str, origin: Origin, outdated: Callable[[Finished], str | None]
    ) -> tuple[str | None, list[Fingerprint]]:
        """Why a finished slide has to be predicted anew, and which of its files cannot be read now."""
        try:
            there = self.read(name)
        except InputError:
            return "what was kept of it is damaged", []
        known = there.record.origin or Origin()
        unread = known.find_unread(origin)
        # What would have to be opened to be outdated cannot be looked at then.
        return known.tell_change(known.presume(origin)) or (None if unread else outdated(there)), unread


def _tell_difference(part: str, old: Any, new: Any) -> str:
    """The first thing that is different in a part of prediction.json."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return f"{part} = {old!r}, this run has {new!r}"
    name = next(name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name))
    if part == "weights":
        return f"other weights of {name}"
    return f"{name} = {old.get(name)!r}, this run has {new.get(name)!r}"
