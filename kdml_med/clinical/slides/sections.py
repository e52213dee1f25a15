"""The sections of a report of slides: in short, performance, calibration, decision curve, networks side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from kdml_med.clinical.networks import COST_COLUMNS
from kdml_med.clinical.slides.findings import Findings
from kdml_med.clinical.slides.judging import POINT_WORDS, Calibration, Judged
from kdml_med.clinical.slides.thresholds import by_patient, several_slides, share_words
from kdml_med.clinical.wording import either, few_section, limits
from kdml_med.keys import NetworkName, network_order
from kdml_med.metrics.decision import DecisionCurve
from kdml_med.report import curves as draw
from kdml_med.report.caution import caution
from kdml_med.report.document import Bullets, Paragraph, Part, Picture, Section, Table
from kdml_med.report.wording import (
    difference_with_interval,
    figure,
    listed,
    network_words,
    p_words,
    width_note,
    with_interval,
)
from kdml_med.words import counted


def few_patients(found: Findings) -> list[Section]:
    """A warning where intervals rest on few patients, or what stands for them; nothing where they do not."""
    positive, negative = found.study.description.classes[-1], found.study.description.classes[0]
    parts: list[Part] = []
    owners: list[str] = []
    for one in found.shown:
        owner = found.owner_in(one.name)
        counts = {f"{positive} {one.level}": one.positives, f"{negative} {one.level}": one.n - one.positives}
        # Slides of one patient are alike, so that patients are what counts.
        counts |= {owner: one.patients} if one.level not in ("patient", owner) else {}
        text = caution(counts)
        if text:
            parts.append(Paragraph(text, lead=f"{one.title}."))
            owners.append(owner)
    return few_section(owners, parts)


def summary(found: Findings) -> Section:
    """What was judged, and the figures that a reader looks for first."""
    study, network = found.study, network_words(found.network)
    positive, negative = study.description.classes[-1], study.description.classes[0]
    text = (
        f"Tells {positive} from {negative}: networks answer for each tile, and the "
        f"{study.description.aggregation} over the tiles of a {study.description.level} is its answer. Figures "
        f"of the {network} follow; all networks stand side by side below."
    )
    lines = [_summary_line(found, one) for one in found.shown]
    last = limits(study, samples=f"{found.owner_in(study.validation.name)}s")
    return Section("In short", [Paragraph(text), Bullets(lines), *last])


def _summary_line(found: Findings, one: Judged) -> str:
    roc = one.networks[found.network].roc
    text = f"{one.title}: AUROC {with_interval(roc.area, roc.area_low, roc.area_high)}; {_sample(found, one)}."
    if found.network in one.why_undefined:
        text += f" Not everything is defined: {one.why_undefined[found.network]}."
    point = one.networks[found.network].points.get("rule_out")
    if point is not None and point.confusion.n:
        text += (
            f" At the rule-out threshold of the validation split: sensitivity {share_words(point.sensitivity)}, "
            f"specificity {share_words(point.specificity)}, NPV {share_words(point.npv)}, "
            f"ruled out {share_words(point.ruled_out)}."
        )
    return text


def _sample(found: Findings, one: Judged) -> str:
    """As in "118 slides of 12 patients (66 malignant)"."""
    text = counted(one.n, one.level)
    owner = found.owner_in(one.name)
    if one.level not in ("patient", owner):
        text += f" of {counted(one.patients, owner)}"
    unknown = f", {counted(one.unlabelled, one.level)} without a label left out" if one.unlabelled else ""
    return f"{text} ({one.positives:,} {found.study.description.classes[-1]}{unknown})"


def performance(found: Findings) -> Section:
    """How well the networks tell the classes apart, whatever the threshold."""
    columns = ["network", "AUROC", "AUROC, DeLong", "average precision", "prevalence"]
    parts: list[Part] = [
        Table(columns, _performance_rows(one), f"{one.title}: {_sample(found, one)}") for one in found.ordered
    ]
    parts += [Paragraph(text, lead="Not defined.") for text in _reasons(found)]
    note = (
        f"Intervals: 95 %, by resampling {listed([f'{owner}s' for owner in found.owners])}. DeLong's, from the "
        f"variance of ranks{_of_patients(found)}, is a cross-check; at an AUROC of 0 or 1 no rank varies, and it has "
        f"no bracket then. Where a class is of one {either(found.owners)}, neither has: nothing says how others of "
        "that class are ranked. The prevalence is what the average precision of a guess would be."
    )
    curves = [
        curve for one in found.ordered for own in one.networks.values() for curve in (own.roc, own.precision_recall)
    ]
    narrow = width_note((curve.area_low, curve.area_high) for curve in curves)
    parts.append(Paragraph(" ".join(filter(None, [note, narrow]))))
    for one in found.shown:
        parts += _curves(found, one)
    return Section("Performance", parts)


def _performance_rows(one: Judged) -> list[list[str]]:
    prevalence = one.positives / one.n if one.n else math.nan
    rows = []
    for name in sorted(one.networks, key=network_order):
        own = one.networks[name]
        cells = [
            with_interval(own.roc.area, own.roc.area_low, own.roc.area_high),
            with_interval(*own.delong),
            with_interval(own.precision_recall.area, own.precision_recall.area_low, own.precision_recall.area_high),
            figure(prevalence),
        ]
        rows.append([network_words(name), *cells])
    return rows


def _reasons(found: Findings) -> list[str]:
    """Why figures are missing: one line for each evaluation and reason."""
    lines = []
    for one in found.ordered:
        for reason in dict.fromkeys(one.why_undefined.values()):
            names = [network_words(name) for name, own in one.why_undefined.items() if own == reason]
            which = "all networks" if len(names) == len(one.networks) else ", ".join(names)
            lines.append(f"{one.title}, {which}: {reason}.")
    return lines


def _of_patients(found: Findings) -> str:
    """By whom DeLong's variance is, where patients have several slides."""
    several = several_slides(found)
    return f", between {either(several, 's')} because slides of one are alike (Obuchowski 1997)" if several else ""


def _curves(found: Findings, one: Judged) -> list[Part]:
    own = one.networks[found.network]
    roc_points, precision_points = [], []
    for point, figures in own.points.items():
        if figures.confusion.n:
            name = POINT_WORDS.get(point, point)
            roc_points.append((name, 1 - figures.specificity.value, figures.sensitivity.value))
            precision_points.append((name, figures.sensitivity.value, figures.ppv.value))
    known = {name: figures for name, figures in one.networks.items() if name not in one.why_undefined}
    if not known:
        return []
    marked = (
        f" Marks: the thresholds that validation chose for the {network_words(found.network)}." if roc_points else ""
    )
    band = f"Band: 95 % at each place, by resampling {found.owner_in(one.name)}s."
    return [
        Picture(
            f"roc-{one.name}.png",
            f"{one.title}: ROC curves. {band}{marked}",
            draw.draw_roc({name: own.roc for name, own in known.items()}, points={found.network: roc_points}),
        ),
        Picture(
            f"precision-recall-{one.name}.png",
            f"{one.title}: precision and recall. {band}{marked} Dotted: the prevalence.",
            draw.draw_precision_recall(
                {name: own.precision_recall for name, own in known.items()},
                points={found.network: [point for point in precision_points if not math.isnan(point[2])]},
            ),
        ),
    ]


def calibration(found: Findings) -> Section:
    """Whether probabilities mean what they say."""
    parts: list[Part] = []
    for one in found.ordered:
        columns = ["network", "Brier score", "ECE", "intercept", "slope"]
        rows = []
        for name in sorted(one.networks, key=network_order):
            own = one.networks[name]
            row = [network_words(name), *_calibration_cells(own.calibration)]
            if found.temperature:
                fitted = found.rules.temperature.get(name, math.nan)
                cells = ["–"] * 4 if own.scaled is None else _calibration_cells(own.scaled)
                row += [figure(fitted, 2), *cells]
            rows.append(row)
        if found.temperature:
            columns += ["temperature", *(f"{name}, scaled" for name in columns[1:])]
        parts.append(Table(columns, rows, one.title))
    note = (
        "Brier score: mean squared error of the probability. ECE: expected calibration error, ten bins over the "
        "probability; with few in a bin it is above 0 by chance alone. Both are best at 0. Intercept: log odds by "
        "which the probabilities are too low on the whole (calibration in the large), best at 0. Slope: of a logistic "
        "regression on their log odds, best at 1, below it they are too extreme (Van Calster et al. 2019); a dash "
        "where a line separates the classes."
    )
    if found.temperature:
        note += (
            " Scaled: the logit of each probability divided by the temperature that fits the validation split best; "
            f"the order of {found.level}s, and with it every ROC curve, stays. A dash: none could be fitted."
        )
        parts += [Paragraph(problem, lead="Caution.") for problem in found.rules.temperature_problems]
    else:
        note += " Probabilities after temperature scaling: report --temperature."
    parts.append(Paragraph(note))
    for one in found.shown:
        own, name = one.networks[found.network], network_words(found.network)
        if not len(own.calibration.reliability.n):
            continue
        caption = (
            f"{one.title}, {name}: observed share of {found.study.description.classes[-1]} over the predicted "
            f"probability, in bins of equally many answers, with Wilson's 95 % intervals{by_patient(found)}. On the "
            "dotted line, probabilities mean what they say."
        )
        drawn = draw.draw_reliability({found.network: own.calibration.reliability})
        parts.append(Picture(f"reliability-{one.name}.png", caption, drawn))
        if own.scaled is not None:
            caption = f"{one.title}, {name}: the same after temperature scaling."
            drawn = draw.draw_reliability({found.network: own.scaled.reliability})
            parts.append(Picture(f"reliability-scaled-{one.name}.png", caption, drawn))
    return Section("Calibration", parts)


def _calibration_cells(own: Calibration) -> list[str]:
    return [figure(own.brier), figure(own.ece), figure(own.intercept, 2), figure(own.slope, 2)]


def decision(found: Findings) -> Section:
    """Whether acting on the networks does more good than acting on everybody or nobody."""
    parts: list[Part] = []
    for one in found.shown:
        known = {name: own.decision for name, own in one.networks.items() if name not in one.why_undefined}
        if known:
            scaled = " Probabilities are scaled, where a temperature could be fitted." if found.temperature else ""
            caption = (
                f"{one.title}: net benefit, true positives less weighed false ones per {one.level}, over the "
                f"probability from which somebody would act (Vickers & Elkin 2006).{scaled}"
                f"{_limit(known.values(), one.level)}"
            )
            parts.append(Picture(f"decision-{one.name}.png", caption, draw.draw_decision(known)))
    if parts:
        text = (
            "At a threshold of 0.1 one accepts nine needless actions for each right one. A network is of use where its "
            f"line is above that of everybody and above 0. The prevalence of these {found.level}s counts: with another "
            "one the curves are others."
        )
        parts.insert(0, Paragraph(text))
    return Section("Decision curve", parts)


def _limit(curves: Iterable[DecisionCurve], level: str) -> str:
    limit = max(own.limit for own in curves)
    return (
        f" Drawn up to {figure(limit, 2)}: beyond, one false positive weighs more than a tenth of all positives, and "
        f"the lines jump with each {level}."
    )


def networks(found: Findings) -> Section:
    """Teacher, students and ensemble: how good, how large, how slow."""
    first = found.shown[0]
    compared = found.against_teacher.get(first.name, {})
    columns = ["network", *COST_COLUMNS, f"AUROC, {first.title.lower()}"]
    if compared:
        columns += ["minus teacher", "p"]
    rows = []
    for name in sorted(first.networks, key=network_order):
        roc = first.networks[name].roc
        row = [network_words(name), *found.costs.cells(name), with_interval(roc.area, roc.area_low, roc.area_high)]
        if compared:
            row += _compared(compared, name)
        rows.append(row)
    parts: list[Part] = [Table(columns, rows, names=2), Paragraph(found.costs.note)]
    if compared:
        note = (
            f"Differences and p values: DeLong, paired{_of_patients(found)}, not corrected for several comparisons; a "
            f"dash where both rank all alike, or a class is of one {either(found.owners)} only."
        )
        parts.append(Paragraph(note))
    return Section("Networks side by side", parts)


def _compared(compared: Mapping[str, tuple[float, float, float, float]], name: str) -> list[str]:
    if name == NetworkName.TEACHER or name not in compared:
        return ["", ""]
    value, low, high, p_value = compared[name]
    return [difference_with_interval(value, low, high), p_words(p_value).removeprefix("p ").removeprefix("= ")]
