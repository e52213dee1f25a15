"""What a reader has to know before the figures: the data are generated, or too few for intervals to be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdml_med.report.document import Paragraph, Section
from kdml_med.report.wording import listed
from kdml_med.words import counted, printable

FEW = 20
"""Patients, slides, sequences or boxes of one kind, below which resampling gives intervals that are too narrow.

Of networks with a true AUROC of 0.95, the interval of 95 % holds it in 50 % of test sets with 5 patients of each class,
77 % with 10, 92 % with 20 (``test_caution``); of few clusters see Cameron, Gelbach & Miller 2008, doi
10.1162/rest.90.3.414.
"""
ENOUGH = 100
"""Of the rarer class, the least that a validation should have: Collins et al. 2016, doi 10.1002/sim.6787."""


def generated_data() -> Section:
    """The warning above all figures of generated data."""
    text = "These figures show that the pipeline works, they say nothing about accuracy on patients."
    return Section("Generated data", [Paragraph(text, lead="The data are synthetic.")], banner=True)


def caution(counts: Mapping[str, int], *, enough: int = ENOUGH) -> str:
    """A sentence on intervals of so few; empty where there are enough.

    Args:
        counts: how many there are, by what one is called, such as ``{"MSI patient": 5, "MSS patient": 4}``; also what
            is resampled, such as ``{"sequence": 19, "box": 646}``.
        enough: from which number of each nothing is said.
    """
    few = {noun: number for noun, number in counts.items() if number < FEW}
    if few:
        return (
            f"Only {_said(few)}: intervals of so few are unreliable and mostly too narrow, and a difference of "
            "practical size can easily be missed."
        )
    if any(number < enough for number in counts.values()):
        return (
            f"A small set, {_said(counts)}: read the intervals, not the figures alone ({enough} of each are advised)."
        )
    return ""


def caution_of(metrics: Mapping[str, Any]) -> str:
    """``caution`` of what a metrics.json was computed from.

    Args:
        metrics: content of a metrics.json, of either task.
    """
    if not metrics["networks"]:
        return ""
    return caution(_counts(metrics, next(iter(metrics["networks"].values()))))


def _counts(metrics: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, int]:
    """What intervals of a metrics.json rest on; ``units`` is absent from those of earlier versions."""
    how: Mapping[str, Any] = metrics.get("bootstrap", {})  # absent where somebody put figures together by hand
    unit: str = how.get("unit", "")
    units: int | None = how.get("units")
    if "n_boxes" in figures:
        known = {"sequence": figures["n_sequences"], "frame": figures["n_frames"]}.get(unit) if units is None else units
        return {"polyp box": figures["n_boxes"]} | ({} if known is None else {unit: known})
    level, classes = metrics["level"], [printable(name) for name in metrics["classes"]]
    group = figures[level]
    negative = classes[0] if len(classes) == 2 else f"not {classes[-1]}"
    counts = {f"{classes[-1]} {level}": group["positives"], f"{negative} {level}": group["n"] - group["positives"]}
    # Slides of one patient are alike, so that patients, or what stands for them, are what counts.
    return counts | ({unit: units} if units is not None and level == "slide" and unit != level else {})


def _said(counts: Mapping[str, int]) -> str:
    return listed([counted(number, noun, "es" if noun.endswith("x") else "s") for noun, number in counts.items()])
