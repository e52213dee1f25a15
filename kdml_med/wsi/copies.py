"""Slides that are byte copies of each other, though the label table gives them to several patients or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdml_med.errors import InputError
from kdml_med.storage.folder import DatasetFolder
from kdml_med.storage.shards import Origin
from kdml_med.tables.labels import LabelTable
from kdml_med.words import printable
from kdml_med.wsi.cutter import SlideJob
from kdml_med.wsi.labelling import remake_job
from kdml_med.wsi.shards import SlideRecord

_Key = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class _Slide:
    """A slide of the dataset to be: whose it is, and what its files hold."""

    job: SlideJob
    origin: Origin

    @property
    def key(self) -> _Key | None:
        """Sizes and digests of its files, whatever these are called; None where nothing can be compared."""
        sources = self.origin.sources
        if any(source.problem for source in sources) or not any(source.size for source in sources):
            return None
        return tuple(sorted((source.size, source.digest) for source in sources))

    @property
    def owner(self) -> tuple[str, str | None]:
        return self.job.patient_id, self.job.label


def find_copies(
    jobs: Sequence[SlideJob],
    folder: DatasetFolder[SlideRecord],
    kept: Sequence[str],
    labels: LabelTable | None,
    *,
    tcga_normals: bool = False,
) -> dict[str, tuple[str, str]]:
    """Slides with the bytes of a slide of another patient, or of another class: at most one of the rows is right.

    Both are refused, since the files do not say which; training on one and testing on the other would leak. Where one
    is tiled already, it stays, and those that are found later are refused. Copies that belong together are left alone,
    and so is a dataset without labels, where no table says whose the slides are.

    Args:
        jobs: slides of this run, with their origins.
        folder: dataset folder, before anything in it is changed.
        kept: slides in it that the run does not name and that stay.
        labels: patients and labels; None for inference.
        tcga_normals: normal tissue has the label of its patient's tumour, too.

    Returns:
        By slide, the name of its file and why it is refused.

    Raises:
        InputError: the table of a slide that is kept is damaged.
    """
    if labels is None:
        return {}
    finished = set(folder.finished())
    slides = [_Slide(job, _presumed(job, folder) if job.slide_id in finished else job.origin) for job in jobs]
    stored: set[str] = set()
    for slide_id in kept:
        record, _ = folder.read(slide_id)
        job = remake_job(record, labels, tcga_normals=tcga_normals)
        if isinstance(job, SlideJob) and record.origin is not None:
            slides.append(_Slide(job, record.origin))
            stored.add(slide_id)
    groups: dict[_Key, list[_Slide]] = {}
    for slide in slides:
        if slide.key is not None:
            groups.setdefault(slide.key, []).append(slide)
    refused: dict[str, tuple[str, str]] = {}
    for key, group in groups.items():
        if len({slide.owner for slide in group}) > 1:
            standing = [
                slide
                for slide in group
                if slide.job.slide_id in stored
                or (slide.job.slide_id in finished and _stored_key(slide.job, folder) == key)
            ]
            refused |= _refuse(group, standing if len({slide.owner for slide in standing}) == 1 else [])
    return refused


def _refuse(group: Sequence[_Slide], standing: Sequence[_Slide]) -> dict[str, tuple[str, str]]:
    """Those of a group that have to go, each with one that it contradicts."""
    refused = {}
    for slide in group:
        others = [other for other in standing or group if other.owner != slide.owner]
        if others and slide not in standing:
            refused[slide.job.slide_id] = (slide.job.path.name, _tell(slide, others[0], tiled=bool(standing)))
    return refused


def _tell(slide: _Slide, other: _Slide, *, tiled: bool) -> str:
    whole = all(source.is_whole for source in (*slide.origin.sources, *other.origin.sources))
    same = "has the same bytes as" if whole else "has the same size and, as far as compared, the same bytes as"
    (patient, label), (other_patient, other_label) = slide.owner, other.owner
    names = (f"of patient {other_patient}", f"for patient {patient}")
    if patient == other_patient:
        names = (f"of patient {other_patient} with the label {other_label}", f"with the label {label}")
    there = ", which is tiled already," if tiled else ""
    return (
        f"{same} {printable(other.job.path.name)} {names[0]}{there} and is listed {names[1]}: correct the label table, "
        "or remove one of the two"
    )


def _stored_origin(job: SlideJob, folder: DatasetFolder[SlideRecord]) -> Origin | None:
    try:
        return folder.read(job.slide_id)[0].origin
    except InputError:  # a damaged table: the slide is tiled anew
        return None


def _presumed(job: SlideJob, folder: DatasetFolder[SlideRecord]) -> Origin:
    """Files of a finished slide; one that cannot be read now is taken for what it was."""
    before = _stored_origin(job, folder) if any(source.problem for source in job.origin.sources) else None
    return job.origin if before is None else before.presume(job.origin)


def _stored_key(job: SlideJob, folder: DatasetFolder[SlideRecord]) -> _Key | None:
    before = _stored_origin(job, folder)
    return None if before is None else _Slide(job, before).key
