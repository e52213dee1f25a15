"""What a preparation did, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdml_med.colonoscopy.contact_sheet import CONTACT_SHEET_FILE
from kdml_med.storage.folder import describe_remade, describe_standing
from kdml_med.storage.manifest import FAILURES_FILE
from kdml_med.words import counted, named_failures, printable, verb

DUPLICATES_FILE = "duplicates.csv"
NO_FOLDERS = "--sequence-from none, and another --out"
"""What to give where folders are no sequences."""
_SHOWN = 5
_NO_SEQUENCES = (
    "NOTE: nothing tells which frames belong to one sequence or patient. Near-identical frames may land in training "
    "and in test, and figures on such a test set are optimistic. Better: a sequence or patient column in a CSV table, "
    "or, where each folder is one sequence, --sequence-from folder."
)


@dataclass
class PreparationReport:
    """What a run did.

    Attributes:
        frames: in the dataset.
        polyps: frames with at least one box.
        negatives: frames that are known to show no polyp.
        unlabelled: frames of which nothing is known.
        boxes: in all frames.
        sequences: distinct ones; the number of frames where sequences are unknown.
        patients: distinct ones; the number of sequences where patients are unknown.
        label_level: as in dataset.json: "patient", "sequence" or "frame".
        unlisted: frames that the annotations do not mention, stored or not.
        skipped: inputs left out because the annotations do not mention them.
        passed_over: annotated video frames that the frame rate did not take.
        cropped: frames whose border was cut off.
        painted: frames in which something beside the field was painted over.
        done: shards stored by this run.
        finished: shards that an earlier run had finished.
        remade: shards that were there, made from something else, and what is different.
        kept: shards of inputs that this run does not name and that stay.
        classes: annotated classes that were taken for polyps.
        folders: that were taken for sequences without anybody saying so, of unknown patients.
        has_splits: whether the annotations or the options told the splits, so that they are frozen.
        failures: rows of failures.csv, (input, reason), but for those that stand.
        standing: such rows of earlier runs, about inputs that this run does not name; no problem of this run.
        duplicates: rows of duplicates.csv: pairs of frames with the same pixels in different sequences.
    """

    frames: int = 0
    polyps: int = 0
    negatives: int = 0
    unlabelled: int = 0
    boxes: int = 0
    sequences: int = 0
    patients: int = 0
    label_level: str = "frame"
    unlisted: int = 0
    skipped: int = 0
    passed_over: int = 0
    cropped: int = 0
    painted: int = 0
    done: int = 0
    finished: int = 0
    remade: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    has_splits: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)
    standing: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)


def describe_report(report: PreparationReport, out: Path) -> list[str]:
    """Lines that tell a person what a preparation did and what to look at."""
    lines = [
        f"{out}: {counted(report.frames, 'frame')}: {report.polyps:,} with polyps "
        f"({counted(report.boxes, 'box', 'es')}), {report.negatives:,} negative, {report.unlabelled:,} unlabelled"
        f"{_groups(report)}",
        f"{counted(report.done, 'shard')} made, {report.finished:,} finished before; border cut off "
        f"{counted(report.cropped, 'frame')}, overlays painted over in {report.painted:,}",
        *describe_remade(report.remade),
    ]
    if report.kept:
        lines.append(
            f"{counted(report.kept, 'shard')} of inputs that were not named {verb(report.kept, 'is', 'are')} kept"
        )
    if len(report.classes) > 1:
        lines.append(f"taken for polyps: {', '.join(report.classes)} (choose with --polyp-class)")
    if report.folders:
        shown = ", ".join(report.folders[:_SHOWN])
        more = f" and {len(report.folders) - _SHOWN:,} more" if len(report.folders) > _SHOWN else ""
        lines.append(f"taken for sequences by their folders: {shown}{more}; if they are none: {NO_FOLDERS}")
    if report.unlisted:
        are = verb(report.unlisted, "is", "are")
        lines.append(f"{counted(report.unlisted, 'frame')} {are} not mentioned by the annotations (--unlisted)")
    if report.skipped:
        them = verb(report.skipped, "it", "them")
        lines.append(f"{counted(report.skipped, 'input')} left out because the annotations do not mention {them}")
    if report.passed_over:
        were = verb(report.passed_over, "was", "were")
        lines.append(
            f"{counted(report.passed_over, 'annotated video frame')} {were} passed over by the frame rate; --fps 0 "
            "takes every frame"
        )
    if report.label_level == "frame" and report.frames:
        lines.append(_NO_SEQUENCES)
    if report.duplicates:
        one, other = report.duplicates[0]
        have = verb(len(report.duplicates), "has", "have")
        lines.append(
            f"NOTE: {counted(len(report.duplicates), 'frame')} {have} exactly the pixels of a frame in another "
            f"sequence, such as {one} and {other}; see {DUPLICATES_FILE} and keep them in one split"
        )
    if report.failures:
        lines.append(f"{counted(len(report.failures), 'problem')}, all in {out / FAILURES_FILE}:")
        lines += named_failures(report.failures)
    lines += describe_standing(report.standing, out)
    if report.frames:
        lines.append(f"look at {out / CONTACT_SHEET_FILE} before training")
    return [printable(line) for line in lines]


def _groups(report: PreparationReport) -> str:
    """How many sequences and patients there are, of those that are known."""
    if report.label_level == "frame":
        return ""
    sequences = counted(report.sequences, "sequence")
    known = counted(report.patients, "patient") if report.label_level == "patient" else "patients not known"
    return f"; {sequences}, {known}"
