"""What cohort.json says of a run: its networks, how to feed them, and whom they have seen."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Split, Task, network_order
from kdml_med.metrics.aggregation import AggregationMethod, Level
from kdml_med.networks.registry import NetworkSpec
from kdml_med.runs.files import COHORT_FILE, TRAIN_AGAIN, read_run_json
from kdml_med.storage.files import write_json
from kdml_med.storage.reading import build, fits, words

FRAME_OPTIONS: dict[str, type] = {
    "crop": bool,
    "mask_overlays": bool,
    "image_format": str,
    "jpeg_quality": int,
    "min_box_px": float,
}
"""How frames were prepared for training, beside their size, is how new ones have to be. Runs of earlier versions know
the first two only."""
TILE_OPTIONS: dict[str, type] = {
    "image_format": str,
    "jpeg_quality": int,
    "stain": str,
    "min_tissue": float,
    "max_background": float,
    "background_level": float,
    "max_pen": float,
    "min_sharpness": float,
}
"""How tiles were cut for training, beside their size and resolution, is how new ones have to be. Which slides needed a
stated resolution, and how many tiles were drawn, is no part of that."""
SCHEMA_VERSION = 1
"""Of cohort.json."""


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What cohort.json holds: everything that is needed to build, feed and judge the networks of a run again.

    Attributes:
        task: what the networks are for.
        version: name of the teacher-student version.
        networks: spec of each network by its name, see ``kdml_med.networks.registry``.
        classes: class names in index order; the last one is the positive class. Detection: the first is background.
        image_size: (height, width) of the networks' input, or the side of a square one, pixels.
        fold: test fold that the run left out; None without folds.
        synthetic: trained on generated data: its figures say nothing about patients.
        seen_patients: hashes of the patients in "train" and "val", see ``hashed_patient``.
        kdml_med: version of this library that trained.
        tile_size_px: classification: side of the stored tiles, pixels; None when they differ.
        mpp: classification: micrometres per pixel of the stored tiles; None when unknown.
        stain: classification: normalisation of tiles, "none" or "macenko".
        tile_options: classification: options of tiling that new slides have to be cut with; empty where tiles were
            imported, or the run is of an earlier version.
        level: classification: what tiles are aggregated to, "patient" or "slide".
        aggregation: classification: how, see ``kdml_med.metrics.aggregation``.
        ensemble_average: classification: see ``kdml_med.engines.evaluator.ensemble_probabilities``.
        frame_size_px: detection: longest side of the stored frames, pixels; None when they keep their size.
        frame_options: detection: how frames were prepared, and new ones have to be.
        fusion: detection: see ``kdml_med.engines.detection.DetectionEvaluator``.
        schema_version: of this layout.
    """

    task: Task
    version: str
    networks: dict[str, NetworkSpec]
    classes: list[str]
    image_size: int | list[int]
    fold: int | None
    synthetic: bool
    seen_patients: dict[str, list[str]]
    kdml_med: str
    tile_size_px: int | None = None
    mpp: float | None = None
    stain: str = "none"
    tile_options: dict[str, Any] = field(default_factory=dict)
    level: Level | None = None
    aggregation: AggregationMethod | None = None
    ensemble_average: str | None = None
    frame_size_px: int | None = None
    frame_options: dict[str, Any] = field(default_factory=dict)
    fusion: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def names(self) -> list[str]:
        """Names of the networks: teacher, then students by number."""
        return sorted(self.networks, key=network_order)

    @property
    def num_classes(self) -> int:
        """What networks are built with: detectors tell the classes apart from background, which is the first one."""
        return len(self.classes) - (self.task is Task.DETECTION)

    def choose(self, network: str) -> tuple[str, ...]:
        """Networks that have to answer: all students for "ensemble", or the one that is named.

        Raises:
            InputError: the run has no such network, or no students.
        """
        students = tuple(name for name in self.names if name != NetworkName.TEACHER)
        if network == NetworkName.ENSEMBLE and students:
            return students
        if network not in self.networks:
            known = ", ".join([*self.names, *([NetworkName.ENSEMBLE.value] if students else [])])
            raise InputError(f"--network is {network!r}; the run has: {known}.")
        return (network,)

    def has_seen(self, patient_id: str, parts: Iterable[str] = (Split.TRAIN, Split.VAL)) -> bool:
        """Whether a patient was learned from ("train") or chosen by ("val"), in whichever Unicode form the id is."""
        forms = {unicodedata.normalize(form, patient_id) for form in ("NFC", "NFD")} | {patient_id}
        hashes = {hashed_patient(form) for form in forms}
        return any(not hashes.isdisjoint(self._seen[part]) for part in parts)

    @functools.cached_property
    def _seen(self) -> dict[str, frozenset[str]]:
        """``seen_patients`` to look names up in, which is asked for every patient of a cohort."""
        return {part: frozenset(names) for part, names in self.seen_patients.items()}

    def seen_in(self, names: Iterable[str]) -> Split | None:
        """Where a patient was seen who could have any of these names: "train" before "val"; None where nowhere."""
        known = list(names)
        found = (part for part in (Split.TRAIN, Split.VAL) if any(self.has_seen(name, [part]) for name in known))
        return next(found, None)

    def write(self, run_dir: str | Path) -> None:
        """Write cohort.json; what the other task knows is left out."""
        others = _ONLY_DETECTION if self.task is Task.CLASSIFICATION else _ONLY_CLASSIFICATION
        content = {name: value for name, value in asdict(self).items() if name not in others}
        write_json(Path(run_dir) / COHORT_FILE, content)

    @classmethod
    def read(cls, run_dir: str | Path, *, task: Task | str | None = None) -> RunDescription:
        """Read cohort.json of a run.

        Args:
            run_dir: folder of the run.
            task: what the run has to be for; None for any.

        Raises:
            InputError: no such run, one of another schema version or task, or a key is missing, unknown or of the
                wrong type.
        """
        path = Path(run_dir) / COHORT_FILE
        content = {"schema_version": 1} | read_run_json(run_dir, COHORT_FILE)  # the first ones did not name it
        if content["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {content['schema_version']!r}, this program reads {SCHEMA_VERSION}: use "
                "the version that trained it, or train again."
            )
        if content.get("task") not in list(Task):
            raise InputError(f"{path} has the task {content.get('task')!r}, expected one of {', '.join(Task)}.")
        if task is not None and content["task"] != task:
            raise InputError(f"the run {run_dir} was trained for {content['task']}; this needs one for {Task(task)}.")
        found = build(cls, content, str(path), remedy=TRAIN_AGAIN)
        found.check(path)
        return found

    def check(self, path: Path) -> None:
        """Refuse values that have the right type and make no sense all the same."""
        for name, (right, meant) in self._expected().items():
            if not right:
                raise InputError(f"{path}: {name} is {getattr(self, name)!r}, expected {meant}. {TRAIN_AGAIN}")

    def _expected(self) -> dict[str, tuple[bool, str]]:
        """Whether each value makes sense, and what would."""
        sides = self.image_size if isinstance(self.image_size, list) else [self.image_size] * 2
        known = {NetworkName.TEACHER.value, *map(NetworkName.student, range(len(self.networks)))}
        specs = self.networks.values()
        expected = {
            "classes": (len(set(self.classes)) == len(self.classes) == 2, "two different names"),
            "image_size": (len(sides) == 2 and min(sides) > 0, "one side or [height, width], pixels"),
            "networks": (
                len(self.networks) > 0
                and known.issuperset(self.networks)
                and all(isinstance(spec, str) or "name" in spec for spec in specs),
                "teacher, student_0 and so on: names, import paths, or objects with 'name' and arguments",
            ),
            "seen_patients": ({*self.seen_patients} == {Split.TRAIN, Split.VAL}, "an object with train and val"),
            "frame_options": (_are_options(self.frame_options, FRAME_OPTIONS), _option_words(FRAME_OPTIONS)),
            "tile_options": (_are_options(self.tile_options, TILE_OPTIONS), _option_words(TILE_OPTIONS)),
            "fold": (self.fold is None or self.fold >= 0, "a whole number from 0, or null"),
        }
        for name in ("tile_size_px", "mpp", "frame_size_px"):
            value = getattr(self, name)
            expected[name] = (value is None or value > 0, "a number above 0, or null")
        needed = ("fusion",) if self.task is Task.DETECTION else ("level", "aggregation", "ensemble_average")
        return expected | {name: (getattr(self, name) is not None, "a text") for name in needed}


def _are_options(found: Mapping[str, Any], known: Mapping[str, type]) -> bool:
    return all(name in known and fits(value, known[name]) for name, value in found.items())


def _option_words(known: Mapping[str, type]) -> str:
    return f"an object with some of {', '.join(f'{name} ({words(kind)})' for name, kind in known.items())}"


_ONLY_CLASSIFICATION = {"tile_size_px", "mpp", "stain", "tile_options", "level", "aggregation", "ensemble_average"}
_ONLY_DETECTION = {"frame_size_px", "frame_options", "fusion"}


def hashed_patient(patient_id: str) -> str:
    """A patient's id as runs record it: enough to recognise a patient, without naming anybody."""
    return hashlib.sha256(patient_id.encode()).hexdigest()[:16]
