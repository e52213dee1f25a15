"""What a label table says of the slides among the inputs, and which of its rows have no slide there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

from kdml_med.tables.labels import LabelTable
from kdml_med.tables.names import is_tcga_normal, other_barcode, slide_name, tcga_site
from kdml_med.tables.usage import RowUse
from kdml_med.words import printable
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.shards import SlideRecord
from kdml_med.wsi.slide import tell_contradiction
from kdml_med.wsi.sources import FoundSlides

NORMAL_TISSUE = (
    "normal tissue (TCGA sample type 10 to 19), while the label is that of the patient's tumour; with --tcga-normals "
    "it is taken all the same"
)
_ABSENT = re.compile(r"row \d+ of .+: no slide(?: of this patient)? among the inputs")
_NO_PICTURES = frozenset(
    {
        *(".xml", ".json", ".geojson", ".yaml", ".csv", ".tsv", ".txt", ".md", ".log", ".html", ".pdf", ".ini", ".py"),
        *(".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".md5", ".sha1", ".sha256", ".sha512", ".parcel"),
    }
)
"""Suffixes of what cannot be a slide, such as notes, annotations and checksums beside it."""


def place_of(path: Path, inputs: Sequence[Path]) -> tuple[str, str]:
    """Path of a slide below the input folder that holds it, and the name of that folder."""
    root = next((root for root in inputs if root in path.parents), path.parent)
    named = root.resolve() if ".." in root.parts else root.absolute()
    return path.relative_to(root).as_posix(), named.name


def make_job(
    path: Path, place: tuple[str, str], labels: LabelTable | None, *, tcga_normals: bool = False
) -> SlideJob | str:
    """A job, or the reason why there is none.

    Args:
        path: of the slide.
        place: as ``place_of`` says it; its name and "" where it is not known any more.
        labels: patients and labels; None for inference.
        tcga_normals: normal tissue has the label of its patient, too.
    """
    slide_id = slide_name(path.name)
    if labels is None:
        site = tcga_site(slide_id)
        return SlideJob(path, slide_id, slide_id[:12].upper() if site else slide_id, site=site)
    match = labels.match(*place)
    if match is None:
        return labels.explain(*place)
    other = other_barcode(slide_id, match.patient_id)
    if other is not None:
        return f"row {match.row} of the label table says patient {match.patient_id}, its name says {other}"
    if match.label is None:
        return f"label is blank for {slide_id} (patient {match.patient_id})"
    if labels.label_level == "patient" and is_tcga_normal(slide_id) and not tcga_normals:
        return NORMAL_TISSUE
    return SlideJob(path, slide_id, match.patient_id, match.label, match.site, labels.mpp(slide_id))


def remake_job(record: SlideRecord, labels: LabelTable | None, *, tcga_normals: bool = False) -> SlideJob | str:
    """The job of a slide that was tiled before, or why the label table does not let its tiles count any more.

    Args:
        record: of the slide.
        labels: patients and labels as they are now; None for inference.
        tcga_normals: normal tissue has the label of its patient, too.
    """
    job = make_job(Path(record.file_name), (record.file_name, ""), labels, tcga_normals=tcga_normals)
    if isinstance(job, str):
        return job
    return tell_contradiction(record.mpp, record.mpp_source, job.table_mpp) or job


def count_rows(labels: LabelTable, slides: Iterable[str], used: Iterable[str]) -> Counter[RowUse]:
    """What became of the rows of a label table.

    Args:
        labels: the table.
        slides: names of all slides that there are.
        used: names of those whose tiles are in the dataset.
    """
    there, taken = ({labels.key(name) for name in names} for names in (slides, used))
    return count_keys(labels, there, taken)


def count_keys(
    labels: LabelTable, there: Collection[str | None], taken: Collection[str | None], left_out: Collection[str] = ()
) -> Counter[RowUse]:
    """``count_rows`` by keys of ``LabelTable.matches``.

    Args:
        labels: the table.
        there: of what there is and was chosen.
        taken: of what is in the dataset.
        left_out: of what was not chosen.
    """
    return Counter(
        RowUse.NO_CLASS
        if match.label is None
        else RowUse.USED
        if key in taken
        else RowUse.UNUSABLE
        if key in there
        else RowUse.NOT_CHOSEN
        if key in left_out
        else RowUse.NO_FILE
        for key, match in labels.matches.items()
    )


def find_absent(
    labels: LabelTable, slides: Iterable[str], files: Iterable[Path], taken: Collection[Path]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Rows of the label table that have a class and no slide: names, and what to say of each.

    Args:
        labels: the table.
        slides: names of all slides that there are.
        files: below the inputs; where one of another kind has the name that is missing, it is named.
        taken: the slides among them.

    Returns:
        Rows that ask for a slide: those of a table with a slide column, and patients of whom there is a file of another
        kind. Then patients of whom there is nothing: a table of patients is often that of a whole archive.
    """
    there = {labels.key(name) for name in slides}
    absent = {key: match for key, match in labels.matches.items() if match.label is not None and key not in there}
    others = _find_others(labels, files, taken) if absent else {}
    what = "slide" if labels.by_slide else "slide of this patient"
    asked: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for key, match in absent.items():
        other = f"; {others[key]} is there, which is not taken for a slide" if key in others else ""
        reason = f"row {match.row} of {labels.source.table}: no {what} among the inputs{other}"  # see _ABSENT
        (asked if labels.by_slide or other else rest).append((match.name, reason))
    return asked, rest


def _find_others(labels: LabelTable, files: Iterable[Path], taken: Collection[Path]) -> dict[str, str]:
    """Files that are no slide of this run, by the key of the table that they would have."""
    known = set(taken)
    found: dict[str, str] = {}
    for path in files:
        if path.suffix.lower() in _NO_PICTURES or path in known:
            continue
        key = labels.key(path.name) or labels.key(path.stem)
        if key is not None:
            found.setdefault(key, printable(path.name))
    return found


def find_standing(
    earlier: Iterable[tuple[str, str]], found: FoundSlides, finished: Iterable[str]
) -> list[tuple[str, str]]:
    """Failures of earlier runs that stand: what a run that only adds slides does not name is no better for it.

    Args:
        earlier: (input, reason) of earlier runs.
        found: what this run names.
        finished: names of slides that are tiled; what is wrong with them is known anew.

    Returns:
        Those of other inputs. None is about a row of a label table, which each run compares with all slides.
    """
    slides = {slide_name(path.name) for path in found.slides} | {*found.lost, *finished}
    names = {PurePosixPath(name).name for name, _ in found.problems}
    return [
        (name, reason)
        for name, reason in earlier
        if not _ABSENT.match(reason) and slide_name(name) not in slides and PurePosixPath(name).name not in names
    ]
