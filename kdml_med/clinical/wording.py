"""What the reports of both tasks say alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdml_med.clinical.study import Study
from kdml_med.report.document import Paragraph, Part, Section
from kdml_med.words import NO_DEVICE


def either(owners: Iterable[str], ending: str = "") -> str:
    """As in "patient", or "frame or sequence" where evaluations differ.

    Args:
        owners: of the evaluations, repeated or not.
        ending: of each word, such as "s".
    """
    return " or ".join(f"{owner}{ending}" for owner in dict.fromkeys(owners))


def few_section(owners: Sequence[str], parts: Sequence[Part]) -> list[Section]:
    """The warning that intervals rest on few; nothing where there is nothing to say.

    Args:
        owners: what intervals of each warned evaluation resample.
        parts: a sentence of each.
    """
    return [Section(f"Few {either(owners, 's')}", parts, banner=True)] if parts else []


def limits(study: Study, *, samples: str) -> list[Paragraph]:
    """What the figures in short are not good for.

    Args:
        study: the run.
        samples: what a test is made on: "patients", or "frames".
    """
    found = [Paragraph(NO_DEVICE)]
    if not study.judged:
        text = (
            f"This run was not evaluated on test {samples} yet: all figures are of the {samples} by which the best "
            f"epoch and the thresholds were chosen, and too good. Next: kdml-med evaluate {study.folder}"
        )
        found.insert(0, Paragraph(text, lead="Validation only."))
    return found
