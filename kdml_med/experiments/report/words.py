"""Words for people: what a report calls arms, roles, metrics and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kdml_med.experiments.plan import Plan, named_arms
from kdml_med.keys import LossTerm

ARM_WORDS = {
    "teacher_only": "teacher alone",
    "independent": "labels only",
    "kd_offline": "offline KD",
    "kd_online": "online KD",
    "ml": "mutual learning",
    "kdml": "KD + ML",
    "kdml_features": "KD + ML, features",
    "kdml_diverse": "KD + ML, diverse",
}
ROLE_WORDS = {"ensemble": "ensemble of the students", "students": "students, mean of each alone", "teacher": "teacher"}
"""In the order in which they are judged: the ensemble is what is used in the end."""

METRIC_WORDS = {
    "auroc": "AUROC",
    "tile_auroc": "AUROC of tiles",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "calibration error",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "f1": "F1",
    "froc_mean": "mean FROC sensitivity",
    "false_positives_per_frame": "false positives per frame",
    "false_positives_per_negative_frame": "false positives per frame without polyp",
    "sequence_sensitivity": "sensitivity, mean of sequences",
    "sequences_found": "sequences with a polyp found",
    "polyps_found": "polyps found",
}
LOWER_IS_BETTER = {"brier", "ece", "false_positives_per_frame", "false_positives_per_negative_frame"}

DIAGNOSTIC_WORDS = {
    "disagreement": "students differ",
    "error_correlation": "their errors correlate",
    "agreement_with_teacher": "students decide as the teacher",
    "brier": "Brier score",
    "ece": "calibration error",
}
MINUS = "−"


def arm_words(plan: Plan) -> dict[str, str]:
    """What to call each arm of a plan; arms that the plan names itself keep their names."""
    words = {}
    for name, (_, settings) in named_arms(plan).items():
        words[name] = ARM_WORDS.get(name, name)
        for like, label in ARM_WORDS.items():
            swept = "_".join(f"{key}={value}" for key, value in settings.items())
            if swept and name == f"{like}_{swept}":
                words[name] = f"{label}, {settings_words(settings)}"
    return words


def settings_words(settings: dict[str, object]) -> str:
    """Settings of an arm, such as "beta 0.5, gamma 2"."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())


def metric_words(metric: str) -> str:
    """Name of a metric, such as "AUROC"."""
    if metric.startswith("froc_sensitivity_"):
        return f"sensitivity at {metric.rpartition('_')[2]} false positives per frame"
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def diagnostic_words(diagnostic: str) -> tuple[str, str]:
    """Name of a diagnostic, and what it was computed for each of, such as "tile"."""
    name, _, level = diagnostic.rpartition("_")
    return DIAGNOSTIC_WORDS.get(name, name.replace("_", " ")), level


def term_words(terms: Iterable[str]) -> dict[str, str]:
    """What to call the terms of a loss-share table: known ones, whether they occur or not, then others by their names.

    Args:
        terms: as the table calls them.
    """
    known = {term.source: term.words for term in LossTerm.weighted()}
    return known | {term: term for term in terms if term not in known}


def network_words(network: str) -> str:
    """Name of a network, with the number that it has in all files."""
    return network.replace("_", " ")


def figure(value: float, digits: int = 3) -> str:
    """A number, or a dash where it is not defined."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", MINUS)


def difference(value: float) -> str:
    """A number with its sign."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", MINUS)


def with_interval(value: float, low: float, high: float) -> str:
    """As in "0.930 (0.852–0.996)"; no bracket where the interval is not defined."""
    if math.isnan(low) or math.isnan(high):
        return figure(value)
    return f"{figure(value)} ({figure(low)}–{figure(high)})"


def difference_with_interval(value: float, low: float, high: float) -> str:
    """As in "+0.012 (−0.020 to 0.045)"."""
    if math.isnan(low) or math.isnan(high):
        return difference(value)
    return f"{difference(value)} ({figure(low)} to {figure(high)})"


def p_words(p_value: float) -> str:
    """As in "p = 0.041" and "p < 0.001"."""
    if math.isnan(p_value):
        return "p not defined"
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def count(number: int, noun: str) -> str:
    """As in "1 patient" and "12 patients"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: list[str]) -> str:
    """As in "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def capital(text: str) -> str:
    """Text that begins a line."""
    return text[:1].upper() + text[1:]
