"""All figures of a detection table, ready for metrics.json, and one row per sequence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.metrics.bootstrap import percentile_interval, resampled_weights
from kdml_med.metrics.box_matching import (
    AnnotatedFrames,
    Floats,
    Group,
    Indices,
    Matches,
    finite,
    match_detections,
    read_frames,
)
from kdml_med.metrics.detection import (
    FrameCounts,
    average_precision,
    by_network,
    count_at,
    found_boxes,
    precision_recall_f1,
)
from kdml_med.metrics.froc import FALSE_POSITIVE_RATES, froc_sensitivity
from kdml_med.metrics.inputs import of_several_groups

Figures = dict[str, Any]
Weights = npt.NDArray[np.int64]
Sums = tuple[Floats, Floats]  # of a ratio of two sums over frames: both summands, [frames]
Values = dict[str, Floats]

FROC_NAMES: tuple[str, ...] = tuple(f"froc_sensitivity_{rate:g}" for rate in FALSE_POSITIVE_RATES)
"""froc_sensitivity_0.1, …, froc_sensitivity_1: keys of the figures by false positives per frame."""


def evaluate_detections(
    frames: pd.DataFrame,
    detections: pd.DataFrame,
    *,
    threshold: float | Mapping[str, float],
    group: Group = "sequence",
    networks: Iterable[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Figures]:
    """Figures of each network, with 95 % intervals by bootstrap over groups of frames.

    Frames without a label are left out. All networks see the same resamples. A sequence or a polyp counts as often as
    its group is drawn; where one of them lies in several groups, the figures about it have no interval. Nor has a
    figure whose boxes, detections, frames, sequences or polyps are all of one group: no resample has others.

    Args:
        frames: evaluated rows of a manifest, see ``kdml_med.metrics.box_matching.read_frames``.
        detections: one row for each detected box and network, columns of ``DetectionColumn``.
        threshold: score from which a detection counts, for all networks or by name; see ``choose_thresholds``.
        group: what is resampled. "sequence" resamples frames where each frame is its own sequence.
        networks: names that get figures even when they detected nothing; those of ``threshold`` do anyway.
        resamples: bootstrap resamples; 0 for no intervals.
        seed: of the resampling.

    Returns:
        ``{network: figures}`` of plain Python numbers, None where a figure is not defined or not known.
        Counts: n_frames, n_boxes, n_negative_frames, n_sequences (None when every frame is its own), n_polyps (None
        when unknown), n_detections (at the threshold). Also threshold.
        With an interval [low, high] under ``<name>_ci95``: ap, ap50, ap75; precision, recall and f1 at the threshold;
        ``FROC_NAMES`` and froc_mean, their mean; sequence_sensitivity (mean over sequences with boxes of the share
        that was found), sequences_found and polyps_found (share with at least one hit), false_positives_per_frame,
        false_positives_per_negative_frame.

    Raises:
        ValueError: unknown group, a network without a threshold, or as for ``read_frames`` and ``match_detections``.
    """
    truth = read_frames(frames)
    groups = truth.groups(group)
    tables = by_network(detections, [*networks, *_names(threshold)])
    limits = _thresholds(threshold, tables)
    units = _Units.of(truth, groups)
    return {
        name: _figures(truth, rows, units, limits[name], resamples=resamples, seed=seed)
        for name, rows in tables.items()
    }


def sequence_table(
    frames: pd.DataFrame, detections: pd.DataFrame, *, threshold: float | Mapping[str, float]
) -> pd.DataFrame:
    """One row per sequence: what each network found there at its threshold.

    Args:
        frames: as for ``evaluate_detections``.
        detections: as for ``evaluate_detections``.
        threshold: as for ``evaluate_detections``.

    Returns:
        Columns sequence_id, patient_id, frames, boxes, and for each network sensitivity_<network> (share of the boxes
        found, NaN without boxes) and false_positives_<network> (their number); sorted by sequence. Both are NaN where
        a score or corner of the network is no number.

    Raises:
        ValueError: as for ``evaluate_detections``.
    """
    truth = read_frames(frames)
    tables = by_network(detections, _names(threshold))
    limits = _thresholds(threshold, tables)
    codes, names = pd.factorize(truth.sequences, sort=True)
    _, first = np.unique(codes, return_index=True)
    boxes = _sums(truth.boxes_per_frame, codes, len(names))
    columns: dict[str, Any] = {"sequence_id": names, "patient_id": truth.patients[first]}
    columns |= {"frames": np.bincount(codes, minlength=len(names)), "boxes": boxes.astype(np.int64)}
    for network, rows in tables.items():
        if not finite(rows):
            columns |= {f"sensitivity_{network}": np.nan, f"false_positives_{network}": np.nan}
            continue
        counts = count_at(match_detections(truth, rows, iou_thresholds=(0.5,)), limits[network])
        share = np.full(len(names), np.nan)
        np.divide(_sums(counts.found, codes, len(names)), boxes, out=share, where=boxes > 0)
        columns[f"sensitivity_{network}"] = share
        columns[f"false_positives_{network}"] = _sums(counts.false_positives, codes, len(names)).astype(np.int64)
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class _Units:
    """Sequences and polyps as indices, and whether each lies in one resampled group.

    ``box_polyp`` is -1 where the polyp is unknown.
    """

    groups: npt.NDArray[Any]
    sequence: Indices
    sequences_known: bool
    sequences_whole: bool
    box_polyp: Indices
    polyps_whole: bool

    @classmethod
    def of(cls, truth: AnnotatedFrames, groups: npt.NDArray[Any]) -> _Units:
        sequence, _ = pd.factorize(truth.sequences, sort=True)
        polyp, _ = pd.factorize(truth.polyps, sort=True)  # None becomes -1
        return cls(
            groups=groups,
            sequence=sequence,
            sequences_known=bool((truth.sequences != truth.sample_ids).any()),
            sequences_whole=_whole(sequence, groups),
            box_polyp=polyp,
            polyps_whole=_whole(polyp[polyp >= 0], groups[truth.box_frame[polyp >= 0]]),
        )


def _whole(units: Indices, groups: npt.NDArray[Any]) -> bool:
    counts = pd.Series(groups).groupby(units).nunique()
    return bool((counts <= 1).all())


def _names(threshold: float | Mapping[str, float]) -> list[str]:
    return list(threshold) if isinstance(threshold, Mapping) else []


def _thresholds(threshold: float | Mapping[str, float], tables: Mapping[str, Any]) -> dict[str, float]:
    if not isinstance(threshold, Mapping):
        return dict.fromkeys(tables, float(threshold))
    missing = sorted(set(tables) - set(threshold))
    if missing:
        raise ValueError(f"the networks {missing} have no threshold; there are some for {sorted(threshold)}.")
    return {name: float(threshold[name]) for name in tables}


def _figures(
    truth: AnnotatedFrames, rows: pd.DataFrame, units: _Units, threshold: float, *, resamples: int, seed: int
) -> Figures:
    usable = finite(rows)
    # A network that diverged detected something, but nothing that has a figure.
    judged = Judged.of(truth, rows if usable else rows.iloc[:0], units, threshold)
    counts = judged.counts
    once = np.ones((1, len(truth.sample_ids)), dtype=np.int64)
    point = {name: float(values[0]) for name, values in _values(judged, once).items()}
    per_draw = int((judged.matches.box >= 0).any(axis=0).sum())
    chunks = resampled_weights(
        units.groups, len(truth.sample_ids), resamples=resamples if usable else 0, seed=seed, per_draw=per_draw
    )
    drawn: dict[str, list[Floats]] = {name: [] for name in point}
    for weights in chunks:
        for name, values in _values(judged, weights).items():
            drawn[name].append(values)
    figures: Figures = {
        "n_frames": len(truth.sample_ids),
        "n_boxes": len(truth.boxes),
        "n_negative_frames": int((counts.boxes == 0).sum()),
        "n_sequences": int(units.sequence.max(initial=-1)) + 1 if units.sequences_known else None,
        "n_polyps": int(units.box_polyp.max(initial=-1)) + 1 or None,
        "n_detections": int(counts.detected.sum()) if usable else len(rows),
        "threshold": threshold,
    }
    for name, value in point.items():
        interval = percentile_interval(np.concatenate([np.empty(0), *drawn[name]]))
        whole = _has_interval(name, judged, units)
        figures[name] = _defined(value) if usable else None
        figures[f"{name}_ci95"] = [_defined(end) if whole else None for end in (interval.low, interval.high)]
    return figures


def _values(judged: Judged, weights: Weights) -> Values:
    """Every figure under every weighting of the frames, each [weightings]."""
    return {name: values for compute in FIGURES for name, values in compute(judged, weights).items()}


@dataclass(frozen=True)
class Judged:
    """What one network detected, compared with the annotation: what figures are computed from.

    Attributes:
        matches: of all its detections.
        counts: of those at the threshold, by frame.
        ratios: summands of figures that are a sum over frames by another.
    """

    matches: Matches
    counts: FrameCounts
    ratios: Mapping[str, Sums]

    @classmethod
    def of(cls, truth: AnnotatedFrames, rows: pd.DataFrame, units: _Units, threshold: float) -> Judged:
        """Compare the rows of one network with the annotation."""
        matches = match_detections(truth, rows)
        counts = count_at(matches, threshold)
        ratios = {
            **_false_positive_sums(counts),
            **_sequence_sums(counts, units),
            **_polyp_sums(truth, found_boxes(matches, threshold), units),
        }
        return cls(matches, counts, ratios)

    def counted(self, name: str) -> npt.NDArray[Any]:
        """What a figure is divided by, [frames]: by annotated box, as most are, if it is no ratio or precision."""
        if name in self.ratios:
            return self.ratios[name][1]
        return self.counts.detected if name == "precision" else self.counts.boxes


def _precisions(judged: Judged, weights: Weights) -> Values:
    precisions = average_precision(judged.matches, weights)
    return {"ap": precisions.mean(axis=1), "ap50": precisions[:, 0], "ap75": precisions[:, 5]}


def _at_threshold(judged: Judged, weights: Weights) -> Values:
    return precision_recall_f1(judged.counts, weights)


def _froc(judged: Judged, weights: Weights) -> Values:
    froc = froc_sensitivity(judged.matches, weights)
    return {**dict(zip(FROC_NAMES, froc.T, strict=True)), "froc_mean": froc.mean(axis=1)}


def _ratios(judged: Judged, weights: Weights) -> Values:
    values: Values = {}
    for name, (part, whole) in judged.ratios.items():
        bottom = weights @ whole
        values[name] = np.full(len(weights), np.nan)
        np.divide(weights @ part, bottom, out=values[name], where=bottom > 0)
    return values


FIGURES: list[Callable[[Judged, Weights], Values]] = [_precisions, _at_threshold, _froc, _ratios]
"""The one list of what gives figures of detectors, each [weightings]; metrics.json has an interval of every one."""

CHARTS = ["ap", "ap50", "ap75", "froc_mean", "f1", "false_positives_per_negative_frame"]
"""Figures that have a curve in TensorBoard."""


def _false_positive_sums(counts: FrameCounts) -> dict[str, Sums]:
    negative = (counts.boxes == 0).astype(np.float64)
    false_positives = counts.false_positives.astype(np.float64)
    return {
        "false_positives_per_frame": (false_positives, np.ones(len(negative))),
        "false_positives_per_negative_frame": (false_positives * negative, negative),
    }


def _sequence_sums(counts: FrameCounts, units: _Units) -> dict[str, Sums]:
    names, first = np.unique(units.sequence, return_index=True)
    boxes = _sums(counts.boxes, units.sequence, len(names))
    found = _sums(counts.found, units.sequence, len(names))
    annotated = (boxes > 0) & units.sequences_known
    share = np.divide(found, boxes, out=np.zeros(len(names)), where=annotated)
    frames = len(counts.boxes)
    whole = _at_frame(annotated, first, frames)
    return {
        "sequence_sensitivity": (_at_frame(share, first, frames), whole),
        "sequences_found": (_at_frame(annotated & (found > 0), first, frames), whole),
    }


def _polyp_sums(truth: AnnotatedFrames, found: npt.NDArray[np.bool_], units: _Units) -> dict[str, Sums]:
    known = np.flatnonzero(units.box_polyp >= 0)
    names, first = np.unique(units.box_polyp[known], return_index=True)
    hits = _sums(found[known], units.box_polyp[known], len(names))
    at, frames = truth.box_frame[known][first], len(truth.sample_ids)
    return {"polyps_found": (_at_frame(hits > 0, at, frames), _at_frame(np.ones(len(names)), at, frames))}


def _at_frame(values: npt.NDArray[Any], frame: Indices, frames: int) -> Floats:
    """Values of sequences or polyps at their first frames, [frames].

    There a value counts as often as that frame does, which is as often as its group was drawn.
    """
    return np.bincount(frame, weights=values, minlength=frames).astype(np.float64)


def _sums(values: npt.NDArray[Any], codes: Indices, count: int) -> Floats:
    return np.bincount(codes, weights=values, minlength=count).astype(np.float64)


def _has_interval(name: str, judged: Judged, units: _Units) -> bool:
    if not of_several_groups(units.groups, judged.counted(name)):
        return False
    if name.startswith("sequence"):
        return units.sequences_whole
    return units.polyps_whole if name.startswith("polyp") else True


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
