"""The report of a run of detectors: what is found, at which price, and which frames are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kdml_med.clinical.networks import Costs
from kdml_med.clinical.plain import plain
from kdml_med.clinical.polyps.detections import DetectorEvaluation, is_validation, judged_detectors, main_network
from kdml_med.clinical.polyps.flow import flow_section
from kdml_med.clinical.polyps.pictures import LEGEND, picture_parts
from kdml_med.clinical.polyps.tables import (
    MOST_SEQUENCES,
    OPERATING,
    OVERALL,
    cell,
    frozen_table,
    intervals,
    networks_table,
    operating_table,
    overall_table,
    sequences_table,
    undefined_at_threshold,
)
from kdml_med.clinical.rules import Rules
from kdml_med.clinical.study import Study
from kdml_med.clinical.wording import few_section, limits
from kdml_med.metrics.box_matching import finite, match_detections, read_frames
from kdml_med.metrics.box_sizes import SIZE_EDGES, SizeFigures, sensitivity_by_size
from kdml_med.metrics.calibration import Reliability, reliability
from kdml_med.metrics.curves import Curve, detection_precision_recall, froc_with_band
from kdml_med.metrics.detection import DEFAULT_THRESHOLD
from kdml_med.report.caution import caution_of
from kdml_med.report.curves import draw_froc, draw_precision_recall, draw_reliability
from kdml_med.report.document import Bullets, Heading, Paragraph, Part, Picture, Section, Table
from kdml_med.report.wording import ENSEMBLE_COST, figure, listed, network_words, width_note, with_interval
from kdml_med.words import counted

CALIBRATED_FROM = 0.1
"""Score from which detections are shown in the calibration; nearly all of those below find nothing."""


@dataclass(frozen=True)
class DetectorFigures:
    """What curves and tables of one evaluation show, by network; empty where its frames cannot be read any more.

    Attributes:
        judged: the evaluation.
        froc: sensitivity over false alarms per frame.
        precision_recall: at an IoU of 0.5.
        sizes: sensitivity at the threshold by size.
        reliability: share of detections that find a polyp, over their score.
    """

    judged: DetectorEvaluation
    froc: Mapping[str, Curve] = field(default_factory=dict)
    precision_recall: Mapping[str, Curve] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, SizeFigures]] = field(default_factory=dict)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)


@dataclass(frozen=True)
class PolypReport:
    """What the page of a run of detectors says.

    Attributes:
        sections: from top to bottom.
        content: its figures as values of JSON.
    """

    sections: list[Section]
    content: dict[str, Any]


def polyp_report(study: Study, rules: Rules, costs: Costs) -> PolypReport:
    """Judge a run of detectors on every set of frames that it was evaluated on.

    Args:
        study: of the run.
        rules: of the run, chosen on its validation frames.
        costs: of its networks.

    Raises:
        InputError: a file of an evaluation is damaged, or it was judged at other thresholds than those of the run.
    """
    every = [collect_figures(judged) for judged in judged_detectors(study, rules)]
    judged = [one.judged for one in every]
    sections = [
        flow_section(study),
        _performance(rules, costs, every),
        _operating(rules, judged),
        *_sizes(every),
        _sequences(judged),
        *_calibration(every),
        Section("Missed polyps and false alarms", [
            Paragraph(LEGEND), *(part for one in judged for part in picture_parts(one))
        ]),
    ]  # fmt: skip
    content = {
        "rules": rules.plain(),
        "evaluations": {one.judged.evaluation.name: _content(one) for one in every},
    }
    return PolypReport([*_few(judged), _summary(study, rules, judged), *sections], content)


def _few(every: Sequence[DetectorEvaluation]) -> list[Section]:
    """A warning of evaluations whose intervals are not to be believed."""
    cautioned = [(judged, text) for judged in every if (text := caution_of(judged.evaluation.metrics))]
    parts = [Paragraph(text, f"{judged.title}.") for judged, text in cautioned]
    return few_section([judged.unit for judged, _ in cautioned], parts)


def _summary(study: Study, rules: Rules, every: Sequence[DetectorEvaluation]) -> Section:
    """What was judged, and the figures that a reader looks for first."""
    network = main_network(every[0])
    chosen = "could not be chosen" if network in rules.by_default else "training chose"
    text = (
        "Finds polyps in colonoscopy frames: networks draw boxes with a score, and those from a threshold count, which "
        f"{chosen} on its validation split. Figures of the {network_words(network)} follow; all networks stand "
        "side by side below."
    )
    lines = []
    for judged in every:
        own = judged.figures[network]
        negative = own["n_negative_frames"]
        without = f"{counted(negative, 'frame')} without a polyp" if negative else "no frame without a polyp"
        lines.append(
            f"{judged.title}: AP50 {cell(own, 'ap50')}, sensitivity by box {cell(own, 'recall')}, false alarms per "
            f"frame {cell(own, 'false_positives_per_frame')}; {counted(own['n_frames'], 'frame')} {_whose(judged)}, "
            f"{counted(own['n_boxes'], 'annotated polyp')}, {without}."
        )
    last = limits(study, samples="frames")
    left = [Paragraph(text) for text in study.left_out]
    return Section("In short", [Paragraph(text), Bullets(lines), *left, *last])


def _whose(judged: DetectorEvaluation) -> str:
    """As in "of 19 sequences (patients not known)"."""
    if judged.unit == "frame":
        return "(patients and sequences not known)"
    table = judged.sequences
    sequences = counted(table["sequence_id"].nunique(), "sequence")
    if judged.unit == "sequence":
        return f"of {sequences} (patients not known)"
    return f"of {sequences} of {counted(table['patient_id'].nunique(), 'patient')}"


def collect_figures(judged: DetectorEvaluation) -> DetectorFigures:
    """Curves with bands, sizes and calibration of every network of an evaluation."""
    if judged.frames is None:
        return DetectorFigures(judged)
    drawn: dict[str, Any] = {"group": judged.unit, "resamples": judged.resamples}
    tables = judged.detections
    return DetectorFigures(
        judged,
        froc={name: froc_with_band(judged.frames, rows, **drawn) for name, rows in tables.items()},
        precision_recall={
            name: detection_precision_recall(judged.frames, rows, **drawn) for name, rows in tables.items()
        },
        sizes={
            name: sensitivity_by_size(judged.frames, rows, threshold=judged.thresholds[name], **drawn)
            for name, rows in tables.items()
        },
        reliability={name: _reliability(judged, name) for name in tables},
    )


def _reliability(judged: DetectorEvaluation, network: str) -> Reliability:
    """Of detections by score: whether they find a polyp."""
    rows = judged.detections[network]
    if judged.frames is None or not finite(rows):
        return reliability(np.empty(0), np.empty(0))
    matches = match_detections(read_frames(judged.frames), rows, iou_thresholds=(0.5,))
    used = matches.score >= CALIBRATED_FROM
    return reliability((matches.row(0.5) >= 0)[used].astype(int), matches.score[used])


def _performance(rules: Rules, costs: Costs, every: Sequence[DetectorFigures]) -> Section:
    parts: list[Part] = [Paragraph(text, "Caution.") for one in every for text in cautions(one.judged)]
    judged = [one.judged for one in every]
    for one in every:
        parts.append(overall_table(one.judged))
        if not one.froc:
            parts.append(Paragraph(one.judged.without_frames, f"No curves of {one.judged.title}:"))
            continue
        name = one.judged.evaluation.name
        points = _points(rules, one.judged)
        found = "found at an IoU of at least 0.5; band: 95 %, pointwise, by bootstrap over " + f"{one.judged.unit}s"
        parts += [
            Picture(
                f"froc_{name}.png",
                f"{one.judged.title}: FROC, share of the annotated polyps {found}. Markers: the thresholds of the run.",
                draw_froc(one.froc, points={network: [place[0]] for network, place in points.items()}),
            ),
            Picture(
                f"precision_recall_{name}.png",
                f"{one.judged.title}: precision and recall, {found}. The curves are COCO's upper envelopes, so that "
                "markers, the thresholds of the run, can lie below them.",
                draw_precision_recall(
                    one.precision_recall, points={network: [place[1]] for network, place in points.items()}
                ),
            ),
        ]
    parts.append(Paragraph(
        "AP: mean over IoU thresholds from 0.50 to 0.95; AP50 and AP75: at one. Mean FROC sensitivity: over 0.1, 0.25, "
        "0.5 and 1 false alarms per frame. Brackets: 95 % intervals by bootstrap over "
        f"{listed([f'{unit}s' for unit in dict.fromkeys(one.unit for one in judged)])}, none where all that a figure "
        f"counts is of one."))  # fmt: skip
    parts += _narrow(intervals(judged, OVERALL))
    parts += [Heading("Size and speed"), networks_table(judged, costs), Paragraph(_speed_words(judged, costs))]
    return Section("Performance", parts)


def _narrow(shown: Iterable[Sequence[float | None]]) -> list[Part]:
    """What to think of intervals without width, where a table shows some."""
    note = width_note(shown)
    return [Paragraph(note)] if note else []


def _speed_words(every: Sequence[DetectorEvaluation], costs: Costs) -> str:
    speed = next((judged.speed for judged in every if judged.speed.get("frames_per_second")), None)
    if speed is None:
        return costs.note
    height, width = speed["image_size"]
    how = f"one frame after the other, {height} × {width} px, {speed['device']}"
    return f"Frames per second, as the evaluation measured: {how}. {ENSEMBLE_COST}"


def _points(rules: Rules, judged: DetectorEvaluation) -> dict[str, list[tuple[str, float, float]]]:
    """Places of the thresholds in the FROC and in the precision-recall chart."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for name, figures in judged.figures.items():
        recall, precision = figures.get("recall"), figures.get("precision")
        false = figures.get("false_positives_per_frame")
        default = name in rules.by_default
        word = f"threshold {DEFAULT_THRESHOLD:g}, none chosen" if default else "threshold chosen on validation"
        if None not in (recall, precision, false):
            found[name] = [(word, float(false), float(recall)), (word, float(recall), float(precision))]  # type: ignore[arg-type]
    return found


def cautions(judged: DetectorEvaluation) -> list[str]:
    """Why the figures of an evaluation should not be relied upon; empty when nothing stands out."""
    found = []
    if is_validation(judged):
        found.append(
            f"{judged.title}: best epoch and thresholds were chosen on these very frames, so that the figures are too "
            "good. Evaluate the run on a test split."
        )
    if judged.unit == "frame":
        found.append(
            f"{judged.title}: which frames belong to one video is not known. Frames count as independent, and "
            "intervals may be too narrow."
        )
    return found


def _operating(rules: Rules, judged: Sequence[DetectorEvaluation]) -> Section:
    parts: list[Part] = [
        Paragraph(
            f"A detection counts {_from_where(rules, judged[0])}. An annotated polyp is found by a detection with an "
            "IoU of at least 0.5."
        )
    ]
    parts += [Paragraph(problem, "Caution.") for problem in rules.problems]
    for one in judged:
        parts.append(operating_table(one))
        reasons = undefined_at_threshold(one)
        if reasons:
            parts.append(Bullets(reasons))
    if len(judged) > 1:
        parts += [Paragraph("The same thresholds on every set of frames:"), frozen_table(judged)]
    parts += _narrow(intervals(judged, OPERATING))
    return Section("Operating points", parts)


def _from_where(rules: Rules, judged: DetectorEvaluation) -> str:
    """As in "from the score with the best F1 on the validation split": only as far as there was something to choose."""
    chosen = "here" if is_validation(judged) else "there and left as it is here"
    default = [name for name in judged.networks if name in rules.by_default]
    if len(default) == len(judged.networks):
        return f"from a score of {DEFAULT_THRESHOLD:g}, because the validation split of the training could choose none"
    text = f"from the score with the best F1 on the validation split of the training, which was chosen {chosen}"
    if default:
        names = listed([network_words(name) for name in default])
        text += f"; of {names} from {DEFAULT_THRESHOLD:g}, because none could be chosen"
    return text


def _sizes(every: Sequence[DetectorFigures]) -> list[Section]:
    parts: list[Part] = []
    shown: list[tuple[float, float]] = []
    for one in every:
        if not one.sizes:
            continue
        sizes = next(iter(one.sizes.values()))
        columns = ["network", *(f"{name}, {own.boxes:,} boxes" for name, own in sizes.items())]
        rows = [
            [network_words(name), *(with_interval(own.sensitivity, own.low, own.high) for own in by_size.values())]
            for name, by_size in one.sizes.items()
        ]
        parts.append(Table(columns, rows, one.judged.title))
        shown += [(own.low, own.high) for by_size in one.sizes.values() for own in by_size.values()]
    if not parts:
        return []
    small, large = (f"{100 * edge:g} %" for edge in SIZE_EDGES)
    text = f"Share of the boxes found at the threshold. Small: under {small} of the frame's area; large: from {large}."
    return [Section("Sensitivity by size of the polyp", [Paragraph(text), *parts, *_narrow(shown)])]


def _sequences(judged: Sequence[DetectorEvaluation]) -> Section:
    parts: list[Part] = []
    for one in judged:
        parts.append(sequences_table(one))
        if len(one.sequences) > MOST_SEQUENCES:
            parts.append(Paragraph(
                f"The {MOST_SEQUENCES} of {len(one.sequences):,} of which least was found; sequences.csv in "
                f"{one.evaluation.folder} has them all."))  # fmt: skip
    text = (
        "Share of the annotated boxes that was found, and number of false alarms, at the threshold of each network. "
        "First come the sequences of which the network in front found least."
    )
    if any(one.unit == "frame" for one in judged):
        text += " Where sequences are not known, each frame has its row."
    return Section("Sequences", [Paragraph(text), *parts])


def _calibration(every: Sequence[DetectorFigures]) -> list[Section]:
    pictures: list[Part] = [
        Picture(
            f"calibration_{one.judged.evaluation.name}.png",
            f"{one.judged.title}: calibration of the scores, the share of the detections that find a polyp, over their "
            f"score, in bins of equally many detections with a score of at least {figure(CALIBRATED_FROM, 1)}. "
            "Lines: 95 %, Wilson, as if detections were independent.",
            _draw_calibration(one.reliability),
        )
        for one in every
        if any(len(own.n) for own in one.reliability.values())
    ]
    if not pictures:
        return []
    text = (
        "A score is no probability: training does not aim at it. On the dotted line a score of 0.6 would mean that 6 "
        "of 10 such detections find a polyp."
    )
    return [Section("Calibration of scores", [Paragraph(text), *pictures])]


def _draw_calibration(bins: Mapping[str, Reliability]) -> Figure:
    drawn = draw_reliability(bins)
    drawn.supxlabel("score", fontsize=10)
    drawn.supylabel("share that finds a polyp", fontsize=10)
    return drawn


def _content(one: DetectorFigures) -> dict[str, Any]:
    """Figures of one evaluation as values of JSON, by network."""
    return {
        name: plain({
            "threshold": one.judged.thresholds[name],
            "figures": dict(figures),
            "froc": one.froc.get(name),
            "precision_recall": one.precision_recall.get(name),
            "sizes": {size: asdict(own) for size, own in one.sizes.get(name, {}).items()},
            "reliability": one.reliability.get(name),
        })
        for name, figures in one.judged.figures.items()
    }  # fmt: skip
