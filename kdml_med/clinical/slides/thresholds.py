"""The sections of a report of slides about frozen thresholds: operating points, confusion, subgroups, cohorts."""

from __future__ import annotations

import math

from kdml_med.clinical.rules import Point
from kdml_med.clinical.slides.findings import Findings, Subgroup
from kdml_med.clinical.slides.judging import POINT_WORDS, Judged
from kdml_med.clinical.study import Role
from kdml_med.clinical.wording import either
from kdml_med.keys import network_order
from kdml_med.metrics.curves import Curve
from kdml_med.metrics.operating import OperatingFigures, Proportion
from kdml_med.report.caution import FEW
from kdml_med.report.document import Code, Paragraph, Part, Section, Table
from kdml_med.report.wording import capital, figure, listed, network_words
from kdml_med.words import counted, verb

_SHARES = ("sensitivity", "specificity", "ppv", "npv", "ruled_out")
_SHARES_OF_GROUPS = ("sensitivity", "specificity", "ruled_out")
_MOST_NAMED = 8
_SHARE_WORDS = {"ppv": "PPV", "npv": "NPV", "ruled_out": "ruled out"}


def operating_points(found: Findings) -> Section:
    """Thresholds of the validation patients, and what they do to others."""
    rules, study = found.rules, found.study
    patients, owner = found.judged[study.validation.name].patients, found.owner_in(study.validation.name)
    whose = "" if found.level in ("patient", owner) else f"of {counted(patients, owner)} "
    text = (
        f"Both thresholds of each network were chosen on the {counted(rules.n, found.level)} {whose}of the validation "
        f"split ({rules.positives:,} {study.description.classes[-1]}) and on nobody else: rule-out is the highest "
        f"threshold that finds 95 % of those that are {study.description.classes[-1]}, Youden has the highest sum of "
        "sensitivity and specificity. Intervals: Wilson, 95 %"
    )
    parts: list[Part] = [Paragraph(f"{text}{by_patient(found)}.")]
    parts += [Paragraph(problem, lead="Caution.") for problem in rules.problems]
    columns = ["network", "point", "threshold", *(_SHARE_WORDS.get(name, name) for name in _SHARES)]
    for one in found.ordered:
        own = " (chosen on these: too good)" if one.role is Role.VALIDATION else ""
        rows = [
            [network_words(name), POINT_WORDS.get(point, point), figure(figures.threshold), *_share_cells(figures)]
            for name in sorted(one.networks, key=network_order)
            for point, figures in one.networks[name].points.items()
        ]
        parts.append(Table(columns, rows, f"{one.title}{own}", names=2))
    negative, positive = study.description.classes
    note = (
        f"Ruled out: share of all that are called {negative}. PPV, NPV and this share hold for the share of {positive} "
        f"in these {found.level}s only. Where a share π of the {found.level}s is {positive}: PPV = sensitivity · π / "
        "(sensitivity · π + (1 − specificity) · (1 − π)), NPV = specificity · (1 − π) / (specificity · (1 − π) + (1 − "
        "sensitivity) · π)."
    )
    parts.append(Paragraph(note))
    return Section("Operating points", parts)


def _share_cells(figures: OperatingFigures) -> list[str]:
    return [share_words(getattr(figures, name)) for name in _SHARES]


def confusion(found: Findings) -> Section:
    """Tables of truth and decision of the judged network; those of the others are in report.json."""
    negative, positive = found.study.description.classes
    parts: list[Part] = []
    for one in found.shown:
        for point, figures in one.networks[found.network].points.items():
            cells = figures.confusion
            if not cells.n:
                continue
            rows = [
                [positive, f"{cells.tp:,}", f"{cells.fn:,}", f"{cells.tp + cells.fn:,}"],
                [negative, f"{cells.fp:,}", f"{cells.tn:,}", f"{cells.fp + cells.tn:,}"],
                ["all", f"{cells.tp + cells.fp:,}", f"{cells.fn + cells.tn:,}", f"{cells.n:,}"],
            ]
            title = f"{one.title}, {POINT_WORDS.get(point, point)}: from {figure(figures.threshold)}"
            parts.append(Table([one.level, f"called {positive}", f"called {negative}", "all"], rows, title))
    if parts:
        others = "the other networks are in report.json."
        parts.append(Paragraph(f"{capital(network_words(found.network))}; tables of {others}"))
    return Section("Confusion tables", parts)


def subgroups(found: Findings) -> Section:
    """Figures of parts of the patients."""
    parts: list[Part] = []
    for name, columns in found.subgroups.items():
        for column, groups in columns.items():
            parts.append(_subgroup_table(found, found.judged[name], column, groups))
    if parts:
        text = (
            f"Figures of the {network_words(found.network)} at the rule-out threshold above; report.json has Youden's, "
            "too. There are no p values: of many groups some look better or worse by chance, and a difference between "
            "them is a question, not a finding."
        )
        return Section("Subgroups", [Paragraph(text), *_few_in_groups(found), *parts])
    text = (
        "The dataset names no more than one site. Other subgroups: report --labels TABLE --by COLUMN, for any column "
        "of the label table."
    )
    return Section("Subgroups", [Paragraph(text)])


def _few_in_groups(found: Findings) -> list[Part]:
    """Groups whose intervals rest on few patients, by name."""
    few: dict[str, int] = {}
    owners: list[str] = []
    for name, columns in found.subgroups.items():
        own = {
            f"{column} {group.name}": group.patients
            for column, groups in columns.items()
            for group in groups
            if group.patients < FEW
        }
        few |= own
        owners += [found.owner_in(name)] if own else []
    if not few:
        return []
    shown = [f"{name} ({number})" for name, number in list(few.items())[:_MOST_NAMED]]
    more = [f"{len(few) - len(shown)} more"] if len(few) > len(shown) else []
    text = (
        f"Fewer than {FEW} {either(owners, 's')}, whose intervals are unreliable and mostly too narrow: "
        f"{listed([*shown, *more])}."
    )
    return [Paragraph(text, lead="Caution.")]


def _subgroup_table(found: Findings, one: Judged, column: str, groups: list[Subgroup]) -> Table:
    owner = found.owner_in(one.name)
    levels = [f"{one.level}s"] if one.level not in ("patient", owner) else []
    head = [column, f"{owner}s", *levels, found.study.description.classes[-1], "AUROC"]
    head += [_SHARE_WORDS.get(share, share) for share in _SHARES_OF_GROUPS]
    rows = []
    for group in groups:
        counts = [group.patients, *([group.n] if levels else []), group.positives]
        point = group.points.get(Point.RULE_OUT.value)
        shares = ["–" if point is None else share_words(getattr(point, share)) for share in _SHARES_OF_GROUPS]
        rows.append([group.name, *(f"{number:,}" for number in counts), area_words(group.roc), *shares])
    return Table(head, rows, f"{one.title}, by {column}", sortable=len(rows) > 3)


def cohorts(found: Findings) -> Section:
    """Every cohort at the same frozen thresholds."""
    every = found.ordered
    left = [*_same_ids(found), *(Paragraph(text) for text in found.study.left_out)]
    if not any(one.role is Role.EXTERNAL for one in every):
        run = found.study.folder
        commands = Code(
            f"kdml-med evaluate {run} --data OTHER --out {run}/evaluation_other\n"
            f"kdml-med report {run} --external {run}/evaluation_other"
        )
        text = "No external cohort is named. Evaluate on patients of another hospital, and name the result:"
        return Section("External cohorts", [Paragraph(text), commands, *left])
    parts: list[Part] = []
    for point, words in POINT_WORDS.items():
        rows = []
        for one in every:
            own = one.networks[found.network]
            shares = _share_cells(own.points[point]) if point in own.points else ["–"] * len(_SHARES)
            rows.append([one.title, f"{one.n:,}", area_words(own.roc), *shares])
        threshold = found.rules.thresholds.get(found.network, {}).get(point, math.nan)
        columns = [
            "cohort",
            f"{found.level}s",
            "AUROC",
            *(_SHARE_WORDS.get(name, name) for name in _SHARES),
        ]
        parts.append(Table(columns, rows, f"At the {words} threshold of the validation split, {figure(threshold)}"))
    return Section("External cohorts", [Paragraph(f"Figures of the {network_words(found.network)}."), *parts, *left])


def _same_ids(found: Findings) -> list[Part]:
    """A caution where cohorts have ids of patients in common: the same people, or two hospitals that count alike."""
    seen: dict[str, str] = {}
    parts: list[Part] = []
    for one in found.study.judged:
        patients = found.answers[one.name].table["patient_id"].unique()
        same = [name for name in patients if name in seen]
        if same:
            text = (
                f"{counted(len(same), found.owner_in(one.name))} of {one.title} "
                f"{verb(len(same), 'has an id', 'have ids')} of {seen[same[0]]}, first {same[0]}. If they are the same "
                "people, this is no external cohort; if two hospitals count alike, put the hospital's name before the "
                "id."
            )
            parts.append(Paragraph(text, lead="Caution."))
        seen |= {name: one.title for name in patients if name not in seen}
    return parts


def several_slides(found: Findings) -> list[str]:
    """What has several slides, by ``Findings.owners``; empty where nothing has."""
    return [found.owner_in(one.name) for one in found.ordered if one.n > one.patients]


def by_patient(found: Findings) -> str:
    """What is done about several slides of one patient; empty where there are none."""
    several = several_slides(found)
    if not several:
        return ""
    one, many = either(several), either(several, "s")
    return (
        f", of as many independent slides as the spread between {many} is worth, because slides of one {one} are "
        f"alike (Korn & Graubard 1998); none where all are of one {one}"
    )


def share_words(share: Proportion) -> str:
    """As in "0.93 (0.85–0.98)"; a dash where it is a share of nobody, no bracket where of one patient."""
    if math.isnan(share.low):
        return figure(share.value, 2)
    return f"{figure(share.value, 2)} ({figure(share.low, 2)}–{figure(share.high, 2)})"


def area_words(curve: Curve) -> str:
    """The area with two digits, for tables with many columns; all digits are in the section on performance."""
    if math.isnan(curve.area_low) or math.isnan(curve.area_high):
        return figure(curve.area, 2)
    return f"{figure(curve.area, 2)} ({figure(curve.area_low, 2)}–{figure(curve.area_high, 2)})"
