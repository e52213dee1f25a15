"""The figures of a run's networks on one group of patients, at rules that were chosen on others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdml_med.clinical.answers import PROBABILITY, Answers
from kdml_med.clinical.rules import Point, Rules
from kdml_med.clinical.study import Role
from kdml_med.keys import network_order
from kdml_med.metrics.calibration import (
    Reliability,
    bins_for,
    brier_score,
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    reliability,
    scale_by_temperature,
)
from kdml_med.metrics.curves import Curve, precision_recall_curve, roc_curve
from kdml_med.metrics.decision import DecisionCurve, decision_curve
from kdml_med.metrics.delong import delong_interval
from kdml_med.metrics.operating import OperatingFigures, figures_at

RESAMPLES = 2000
"""Of the bootstrap, as in metrics.json."""
POINT_WORDS = {Point.RULE_OUT.value: "rule-out", Point.YOUDEN.value: "Youden"}
"""What operating points are called."""


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say; figures are NaN where they are not defined."""

    brier: float
    ece: float
    intercept: float
    slope: float
    reliability: Reliability


@dataclass(frozen=True)
class NetworkFigures:
    """Figures of one network on some patients; NaN where one is not defined.

    Attributes:
        roc: its area is the AUROC.
        precision_recall: its area is the average precision.
        delong: AUROC, low, high: DeLong's interval, a cross-check of the bootstrap.
        calibration: of the probabilities as they are.
        scaled: of those divided by the run's temperature; None where that was not asked for, or none could be fitted.
        decision: of the scaled probabilities, where there are any.
        points: figures at each frozen threshold, by operating point.
    """

    roc: Curve
    precision_recall: Curve
    delong: tuple[float, float, float]
    calibration: Calibration
    scaled: Calibration | None
    decision: DecisionCurve
    points: dict[str, OperatingFigures]


@dataclass(frozen=True)
class Judged:
    """One evaluation, judged.

    Attributes:
        name: of the evaluation.
        title: the same for people.
        role: what it is to the run.
        level: what carries a label, "patient" or "slide".
        patients: with a label, different ones.
        n: patients or slides with a label, which figures are of.
        positives: of them.
        unlabelled: patients or slides without a label.
        networks: figures by network.
        why_undefined: by network, why figures are missing; empty where none is.
    """

    name: str
    title: str
    role: Role
    level: str
    patients: int
    n: int
    positives: int
    unlabelled: int
    networks: dict[str, NetworkFigures] = field(repr=False)
    why_undefined: dict[str, str]


def judge(answers: Answers, rules: Rules, *, name: str, title: str, role: Role, temperature: bool = False) -> Judged:
    """Judge every network of an evaluation.

    Args:
        answers: of the evaluation.
        rules: of the run, chosen on its validation patients.
        name: of the evaluation.
        title: the same for people.
        role: what it is to the run.
        temperature: scale the probabilities, too.
    """
    known = answers.labelled
    networks = {}
    for network in answers.networks:
        scale = rules.temperature.get(network, math.nan) if temperature else math.nan
        networks[network] = _judge_network(
            known,
            probabilities_of(known, network),
            rules.thresholds.get(network, {}),
            temperature=scale,
        )
    return Judged(
        name=name,
        title=title,
        role=role,
        level=answers.level,
        patients=int(known["patient_id"].nunique()),
        n=len(known),
        positives=int(known["label"].sum()),
        unlabelled=len(answers.table) - len(known),
        networks=networks,
        why_undefined={
            network: reason for network in answers.networks if (reason := why_undefined(known, network, answers.level))
        },
    )


def probabilities_of(table: pd.DataFrame, network: str) -> npt.NDArray[np.float64]:
    """What a network says of each row of the answers."""
    return table[f"{PROBABILITY}{network}"].to_numpy(np.float64)


def _judge_network(
    known: pd.DataFrame,
    probabilities: npt.NDArray[np.float64],
    thresholds: Mapping[str, float],
    *,
    temperature: float,
) -> NetworkFigures:
    """Figures of one network.

    Args:
        known: rows of answers with a label: "patient_id" and "label".
        probabilities: of the positive class, by row.
        thresholds: by operating point.
        temperature: divides the logits; NaN for none.
    """
    labels, patients = known["label"].to_numpy(np.int64), known["patient_id"].to_numpy()
    scaled = None if math.isnan(temperature) else scale_by_temperature(probabilities, temperature)
    return NetworkFigures(
        roc=roc_curve(labels, probabilities, groups=patients, resamples=RESAMPLES),
        precision_recall=precision_recall_curve(labels, probabilities, groups=patients, resamples=RESAMPLES),
        delong=delong_interval(labels, probabilities, groups=patients),
        calibration=_calibrate(labels, probabilities, patients),
        scaled=None if scaled is None else _calibrate(labels, scaled, patients),
        decision=decision_curve(labels, probabilities if scaled is None else scaled),
        points=points_at(labels, probabilities, thresholds, patients),
    )


def points_at(
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    thresholds: Mapping[str, float],
    patients: npt.NDArray[np.object_],
) -> dict[str, OperatingFigures]:
    """Figures at each threshold, by operating point; see ``kdml_med.metrics.operating.figures_at``."""
    return {point: figures_at(labels, probabilities, value, groups=patients) for point, value in thresholds.items()}


def _calibrate(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], patients: npt.NDArray[np.object_]
) -> Calibration:
    return Calibration(
        brier_score(labels, probabilities),
        expected_calibration_error(labels, probabilities),
        calibration_intercept(labels, probabilities),
        calibration_slope(labels, probabilities),
        reliability(labels, probabilities, bins=bins_for(len(labels)), groups=patients),
    )


def judged_network(networks: Iterable[str]) -> str:
    """The network that a report is about: the ensemble, or the only student, or the only network."""
    names = sorted(networks, key=network_order)
    return names[-1]


def why_undefined(known: pd.DataFrame, network: str, level: str) -> str:
    """Why figures of a network are missing, as the end of a sentence; empty where none is."""
    if known.empty:
        return f"no {level} has a label"
    if np.isnan(probabilities_of(known, network)).any():
        return "the network answers with something that is no number"
    if known["label"].nunique() < 2:
        return f"all {level}s are of one class"
    return ""
