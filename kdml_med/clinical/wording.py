"""What the reports of both tasks say alike."""

from __future__ import annotations

from kdml_med.clinical.study import Study
from kdml_med.report.document import Paragraph
from kdml_med.words import NO_DEVICE


def limits(study: Study, *, samples: str, chosen_by: str) -> list[Paragraph]:
    """What the figures in short are not good for.

    Args:
        study: the run.
        samples: what a test is made on: "patients" or "frames".
        chosen_by: whom or what training chose by, with its verb: "patients who chose" or "frames that chose".
    """
    found = [Paragraph(NO_DEVICE)]
    if not study.judged:
        text = (
            f"This run was not evaluated on test {samples} yet: all figures are of the {chosen_by} the best epoch and "
            f"the thresholds, and too good. Next: kdml-med evaluate {study.folder}"
        )
        found.insert(0, Paragraph(text, lead="Validation only."))
    return found
