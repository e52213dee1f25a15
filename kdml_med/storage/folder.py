"""The dataset folder while it is made: one run at a time, one set of options, and shards from the inputs named.

A shard is finished when it is whole and was made from what the run names: the same files by name, size and hash (and
time, where not all bytes are hashed), and the same facts about them. All else is made anew or refused by name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import pyarrow as pa

from kdml_med.errors import InputError
from kdml_med.storage.files import Fingerprint, Rows, write_table
from kdml_med.storage.locks import sole_user
from kdml_med.storage.manifest import (
    DATASET_FILE,
    FAILURES_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    DatasetInfo,
    DatasetKind,
    read_info,
    write_info,
    write_manifest,
)
from kdml_med.storage.reading import read_table
from kdml_med.storage.rows import same_rows
from kdml_med.storage.shards import Origin, Record, read_record, shard_path, sidecar_path, times_path
from kdml_med.words import counted, printable, storable, verb

if TYPE_CHECKING:
    import pandas as pd

FULL_HASH = "full_hash"
"""Name of the option by which all bytes of large inputs are hashed; in dataset.json only where it is set."""
_SHARD_FILES = (sidecar_path, times_path, shard_path)  # the table first: without it nothing counts as finished
_FAILURE_COLUMNS = ("input", "reason")
_SHOWN = 10
_SEEN_WITHIN_S = 120.0  # NFS may show a folder as it was a minute ago


def list_versions(program: str, libraries: Sequence[str]) -> dict[str, str]:
    """``made_by`` of a dataset: the program, and the versions of what decides its bytes."""
    return {"program": program} | {name: importlib.metadata.version(name) for name in libraries}


def list_options(info: DatasetInfo) -> dict[str, Any]:
    """Everything of dataset.json that has to be the same in every run."""
    described = {name: getattr(info, name) for name in ("classes", "label_level", "synthetic")}
    return info.options | described | {FULL_HASH: info.options.get(FULL_HASH, False)}


@dataclass
class Work:
    """What a run has to do.

    Attributes:
        pending: names of the shards to make.
        remade: those of them that were there, made from something else, and what is different.
        kept: finished shards that the run does not name and that stay.
        unread: finished shards that stay because files of theirs, which are given, cannot be read now.
    """

    pending: set[str] = field(default_factory=set)
    remade: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    unread: dict[str, list[Fingerprint]] = field(default_factory=dict)

    def tell_unread(self, kept: str) -> list[tuple[str, str]]:
        """Rows of failures.csv for files of ``unread``: (file, reason), which says what stays of an earlier run."""
        return [
            (file.name, f"{name}: cannot be read: {file.problem}; the {kept} of an earlier run stay")
            for name, files in self.unread.items()
            for file in files
        ]


class DatasetFolder(Generic[Record]):
    """A dataset folder that one run writes to; a context manager that holds the lock.

    Args:
        path: of the folder; made when absent.
        info: what dataset.json is to say. Splits that are frozen there are carried over.
        record: class of what is recorded with each shard.
        compare: what of dataset.json has to be the same as in earlier runs.
        changeable: names of options that may change after all, because nothing stored depends on them.
        pictures: folder with a JPEG for each shard, which goes when the shard does.

    Raises:
        InputError: on entering: the folder is in use, is no dataset, or was made by another program or with other
            options. Nothing was written then.
    """

    def __init__(
        self,
        path: Path,
        info: DatasetInfo,
        record: type[Record],
        *,
        compare: Callable[[DatasetInfo], Mapping[str, Any]] = list_options,
        changeable: Callable[[DatasetFolder[Record]], Collection[str]] = lambda folder: (),
        pictures: str | None = None,
    ) -> None:
        self.path, self.info, self.kind = path, info, DatasetKind(info.kind)
        self._record, self._pictures = record, pictures
        self._stored: list[str] = []
        self._compare, self._changeable = compare, changeable
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> DatasetFolder[Record]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(sole_user(self.path))
            self._open()
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def _open(self) -> None:
        """Write dataset.json, or check that the one there was made by the same program with the same options."""
        if not (self.path / DATASET_FILE).exists():
            strangers = sorted(path.name for path in self.path.iterdir() if not path.name.endswith(".part"))
            if strangers:
                raise InputError(
                    f"{self.path} is not empty (it holds {strangers[0]}) and not a dataset: choose another --out."
                )
            write_info(self.path, self.info)
            return
        there = read_info(self.path)
        if there.made_by.get("program") != self.info.made_by["program"]:
            raise InputError(f"{self.path} was made by {there.made_by.get('program')}: choose another --out.")
        old, new = self._compare(there), self._compare(self.info)
        different = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
        free = self._changeable(self) if different else ()
        for name in different:
            if name not in free:
                raise InputError(
                    f"{self.path} was made with {name} = {old.get(name)!r}, this run has {new.get(name)!r}: "
                    "use the same options, or choose another --out."
                )
        self.info.splits = there.splits
        if different:
            there.options |= {name: new[name] for name in different}
            write_info(self.path, there)

    def finished(self) -> list[str]:
        """Sorted names of the shards that are stored completely, from whatever inputs."""
        tables = (self.path / SHARDS_DIR).glob("*.parquet")
        return sorted(path.stem for path in tables if path.with_suffix(".tar").is_file())

    def take_stored(self, name: str) -> None:
        """A worker says that it has stored a shard; see ``await_stored``."""
        self.withdraw_manifest()
        self._stored.append(name)
        if len(self._stored) == 1:  # workers with another folder of that name are told before the rest is in vain
            self.await_finished(self._stored)

    def await_stored(self) -> int:
        """Wait until all shards that were said to be stored are seen here; gives their number."""
        self.await_finished(self._stored)
        return len(self._stored)

    def await_finished(self, names: Collection[str]) -> None:
        """Wait until shards that other machines have stored are seen here, which takes network file systems a while.

        Raises:
            InputError: one is not seen in time.
        """
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while missing := set(names).difference(self.finished()):
            if time.monotonic() > deadline:
                raise InputError(
                    f"a worker has stored {min(missing)}, but {self.path} does not show it here: it has to be the same "
                    "folder on all machines."
                )
            time.sleep(0.5)

    def read(self, name: str) -> tuple[Record, pa.Table]:
        """Record and rows of a finished shard.

        Raises:
            InputError: its table is damaged.
        """
        return read_record(self.path, name, self._record, self.kind)

    def find_strangers(self, names: Collection[str], *, allowed: bool = False, keeps: bool = True) -> list[str]:
        """Finished shards of inputs that the run does not name.

        Args:
            names: of the shards of this run, also of those that it cannot make.
            allowed: there may be some; what becomes of them is said to ``plan``.
            keeps: the command can keep them.

        Raises:
            InputError: there are some, and it was not said what becomes of them.
        """
        strangers = sorted(set(self.finished()) - set(names))
        if strangers and not allowed:
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            raise InputError(
                f"{self.path} holds what is not among the inputs of this run: {', '.join(strangers[:3])}{more}. Name "
                f"all inputs in one run, choose another --out, or pass {'--keep to keep them or ' * keeps}--force to "
                "delete them."
            )
        return strangers

    def plan(
        self,
        origins: Mapping[str, Origin],
        strangers: Sequence[str] = (),
        *,
        keep: bool = False,
        outdated: Callable[[Record], str | None] = lambda record: None,
    ) -> Work:
        """Decide what is to do, and delete what was made from something else and what killed runs left.

        Args:
            origins: what each shard of this run is made from.
            strangers: shards that the run does not name; they are deleted, unless they are to be kept.
            keep: strangers stay part of the dataset, and no shard is replaced.
            outdated: why a shard from the same origin has to be made anew; None when it has not.

        Raises:
            InputError: with ``keep``: a shard would be replaced. Nothing was deleted then.
        """
        whole = set(self.finished())
        work = Work()
        for name in [name for name in origins if name in whole]:
            change, unread = self._compare_origin(name, origins[name], outdated)
            if change is not None:
                work.remade[name] = change
            elif unread:
                work.unread[name] = unread
        if keep and work.remade:
            name, change = next(iter(work.remade.items()))
            raise InputError(
                f"{self.path} holds {name} already, made from something else: {change}. --keep replaces nothing: give "
                "the input another name, leave --keep out and name all inputs, or choose another --out."
            )
        work.kept = list(strangers) if keep else []
        for name in (*work.remade, *([] if keep else strangers)):
            self.discard(name)
        self.remove_leftovers()
        work.pending = {name for name in origins if name not in whole or name in work.remade}
        return work

    def _compare_origin(
        self, name: str, origin: Origin, outdated: Callable[[Record], str | None]
    ) -> tuple[str | None, list[Fingerprint]]:
        try:
            record, _ = self.read(name)
        except InputError:
            return "its table is damaged", []
        known = record.origin
        if known is None:
            return "an earlier version did not record what it was made from", []
        return known.tell_change(known.presume(origin)) or outdated(record), known.find_unread(origin)

    def discard(self, name: str) -> None:
        """Delete a shard; the manifest goes first, so that it never points at what is not there."""
        self.withdraw_manifest()
        for path_of in _SHARD_FILES:
            path_of(self.path, name).unlink(missing_ok=True)
        if self._pictures is not None:
            (self.path / self._pictures / f"{name}.jpg").unlink(missing_ok=True)

    def withdraw_manifest(self) -> None:
        """Take the manifest away until the end of the run: without it nobody trains on a dataset half made."""
        (self.path / MANIFEST_FILE).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete the unfinished files of runs that were killed."""
        for path in self.path.rglob(".*.part"):
            path.unlink(missing_ok=True)
        whole = set(self.finished())
        for path in sorted((self.path / SHARDS_DIR).glob("*")):
            name = path.name.removesuffix(".times.json") if path.name.endswith(".times.json") else path.stem
            if name not in whole and path in (of(self.path, name) for of in _SHARD_FILES):
                self.withdraw_manifest()
                path.unlink(missing_ok=True)

    def read_failures(self) -> list[tuple[str, str]]:
        """Rows of failures.csv as an earlier run wrote them, (input, reason); none without the file.

        Raises:
            InputError: it is damaged.
        """
        path = self.path / FAILURES_FILE
        if not path.is_file():
            return []
        table = read_table(path, _FAILURE_COLUMNS, remedy="Delete it, and give the same command again.")
        return [(str(name), str(reason)) for name, reason in zip(table["input"], table["reason"], strict=True)]

    def write_tables(
        self, manifest: pa.Table, failures: Sequence[tuple[str, str]], tables: Mapping[str, pd.DataFrame | Rows | None]
    ) -> None:
        """Write failures.csv, further tables and, last, the manifest; what is there already is not touched.

        Args:
            manifest: rows of the whole dataset.
            failures: (input, reason) of everything that could not be used; of any text, see ``failure_rows``.
            tables: by file name; None removes the file.

        Raises:
            InputError: the manifest breaks its contract.
        """
        same = self.holds(manifest)
        if not same:
            self.withdraw_manifest()
        for name, table in tables.items():
            if table is None:
                (self.path / name).unlink(missing_ok=True)
            else:
                write_table(self.path / name, table)
        write_table(self.path / FAILURES_FILE, failure_rows(failures))
        if not same:
            write_manifest(self.path / MANIFEST_FILE, manifest)

    def holds(self, manifest: pa.Table) -> bool:
        """Whether the manifest there has exactly these rows."""
        return same_rows(self.path / MANIFEST_FILE, manifest, self.kind.layout)


def failure_rows(failures: Iterable[tuple[str, str]]) -> Rows:
    """The table failures.csv; names of files that are not UTF-8 can be part of every input and reason."""
    return Rows(_FAILURE_COLUMNS, [(storable(name), storable(reason)) for name, reason in failures])


def describe_standing(standing: Sequence[tuple[str, str]], out: Path) -> list[str]:
    """The line that tells a person of problems of earlier runs that a run with ``keep`` does not solve, if any."""
    if not standing:
        return []
    rows, stand = counted(len(standing), "row"), verb(len(standing), "stands", "stand")
    return [f"{rows} of earlier runs {stand} in {out / FAILURES_FILE}, about inputs that were not named now"]


def describe_remade(remade: Mapping[str, str]) -> list[str]:
    """Lines that tell a person which shards were made anew and why."""
    reasons: dict[str, list[str]] = {}
    for name, reason in remade.items():
        reasons.setdefault(reason, []).append(name)
    lines = [
        f"made anew: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''} "
        f"({reason})"
        for reason, names in list(reasons.items())[:_SHOWN]
    ]
    lines += [f"made anew for other reasons: {len(reasons) - _SHOWN} more"] * (len(reasons) > _SHOWN)
    return [printable(line) for line in lines]
