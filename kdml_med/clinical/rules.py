"""What was chosen for a run, once, on the patients that its training validated on: thresholds and temperature.

Whoever judges a run takes ``Rules``, and there is one way to get some: ``rules_of_run``, which is told the run and
nothing else. It reads what training left in the run's own folder, and refuses it unless every patient there is one that
cohort.json says the training validated on. Other answers have no way in, so that nothing can be chosen on test
patients by a slip. It is no protection from somebody who edits cohort.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kdml_med.clinical.answers import Answers, check_patients, read_answers, read_evaluation, split_of
from kdml_med.errors import InputError
from kdml_med.keys import DetectionColumn, Split, Task
from kdml_med.metrics.calibration import fit_temperature
from kdml_med.metrics.classification import threshold_for_sensitivity
from kdml_med.metrics.detection import DEFAULT_THRESHOLD
from kdml_med.metrics.operating import youden_threshold
from kdml_med.report.wording import network_words
from kdml_med.runs import (
    DETECTIONS_FILE,
    METRICS_FILE,
    SEQUENCES_FILE,
    TRAIN_AGAIN,
    RunDescription,
    networks_by_default,
    read_thresholds,
)
from kdml_med.storage.reading import damaged, read_rows, read_table

RULE_OUT_SENSITIVITY = 0.95
FEW_POSITIVES = 20
"""With fewer, 95 % of the validation positives are all of them, and the threshold hangs on the lowest one."""


class Point(StrEnum):
    """Operating points."""

    RULE_OUT = "rule_out"
    """Classifiers: the highest threshold that finds 95 % of the validation positives."""
    YOUDEN = "youden"
    """Classifiers: the highest sensitivity + specificity."""
    BEST_F1 = "best_f1"
    """Detectors: the score with the best F1."""


@dataclass(frozen=True, init=False)
class Rules:
    """Choices of a run; only ``rules_of_run`` makes them.

    Attributes:
        level: what answers are of: "patient" or "slide"; "frame" for detectors.
        aggregation: how tiles become one probability; None for detectors.
        thresholds: ``{network: {point: threshold}}``, read-only; NaN where none could be chosen, of detectors
            ``DEFAULT_THRESHOLD``.
        temperature: ``{network: temperature}``, read-only, see ``kdml_med.metrics.calibration.fit_temperature``; NaN
            where none could be fitted; empty for detectors.
        n: validation slides or patients (detectors: frames) that they were chosen on.
        positives: of these (detectors: annotated boxes in them).
        problems: what could not be chosen and why, and what hangs on few; sentences for people.
        temperature_problems: likewise of temperatures alone, which only matter where they are used.
        by_default: detectors for which none could be chosen, see ``networks_by_default``; empty for classifiers.
    """

    level: str
    aggregation: str | None
    thresholds: Mapping[str, Mapping[str, float]]
    temperature: Mapping[str, float]
    n: int
    positives: int
    problems: tuple[str, ...]
    temperature_problems: tuple[str, ...]
    by_default: tuple[str, ...]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("Rules are chosen on the validation patients of a run: rules_of_run(run_dir) makes them.")

    def plain(self) -> dict[str, Any]:
        """The same as plain objects for a JSON file; None where a value could not be chosen."""
        return {
            "level": self.level,
            "aggregation": self.aggregation,
            "thresholds": {
                network: {point: _defined(value) for point, value in own.items()}
                for network, own in self.thresholds.items()
            },
            "temperature": {network: _defined(value) for network, value in self.temperature.items()},
            "n": self.n,
            "positives": self.positives,
            "problems": list(self.problems),
            "temperature_problems": list(self.temperature_problems),
            "by_default": list(self.by_default),
        }


def rules_of_run(run_dir: str | Path) -> Rules:
    """Choose thresholds and temperatures of a run on its own validation patients; detectors: read what it chose.

    Args:
        run_dir: folder of a finished run.

    Raises:
        InputError: no finished run, or its folder holds other answers than those on its validation patients.
    """
    run = RunDescription.read(run_dir)
    metrics = read_evaluation(run_dir)
    split = split_of(metrics, Path(run_dir) / METRICS_FILE)
    if split != Split.VAL:
        raise InputError(
            f"{Path(run_dir) / METRICS_FILE} is of the split {split.value!r}, expected that of the validation: nothing "
            f"may be chosen on other patients. {TRAIN_AGAIN}"
        )
    return _of_detectors(run, run_dir, metrics) if run.task is Task.DETECTION else _of_classifiers(run_dir, metrics)


def _make(**values: Any) -> Rules:
    rules = object.__new__(Rules)
    assert values.keys() == {field.name for field in fields(Rules)}
    for name, value in values.items():
        object.__setattr__(rules, name, value)
    return rules


def _of_classifiers(run_dir: str | Path, metrics: Mapping[str, Any]) -> Rules:
    answers = read_answers(run_dir, run_dir)
    labels = answers.labelled["label"]
    n, positives = len(labels), int(labels.sum())
    _check_counts(answers, metrics, n, positives)
    thresholds, temperature = {}, {}
    problems, unfitted = _few(answers, n, positives), []
    for network in answers.networks:
        truth, probabilities, _ = answers.of(network)
        thresholds[network] = MappingProxyType(
            {
                Point.RULE_OUT.value: threshold_for_sensitivity(truth, probabilities, RULE_OUT_SENSITIVITY),
                Point.YOUDEN.value: youden_threshold(truth, probabilities),
            }
        )
        temperature[network] = fit_temperature(truth, probabilities)
        if np.isnan(probabilities).any():
            problems.append(f"{network} answers with something that is no number: nothing was chosen for it.")
        elif 0 < positives < n and math.isnan(temperature[network]):
            unfitted.append(
                f"{network}: no temperature fits the validation {answers.level}s best; all answers are on the right "
                "side of 0.5, or they are no better than chance."
            )
    return _make(
        level=answers.level,
        aggregation=answers.aggregation,
        thresholds=MappingProxyType(thresholds),
        temperature=MappingProxyType(temperature),
        n=n,
        positives=positives,
        problems=tuple(problems),
        temperature_problems=tuple(unfitted),
        by_default=(),
    )


def _check_counts(answers: Answers, metrics: Mapping[str, Any], n: int, positives: int) -> None:
    """Files of two evaluations in one folder."""
    for network in answers.networks:
        figures = metrics["networks"][network].get(answers.level)
        known = figures if isinstance(figures, Mapping) else {}
        if (known.get("n"), known.get("positives")) != (n, positives):
            raise InputError(
                f"{answers.folder / METRICS_FILE} is of {known.get('n')} {answers.level}s, {known.get('positives')} "
                f"positive, the predictions beside it are of {n}, {positives} positive: they are of different "
                f"evaluations. {TRAIN_AGAIN}"
            )


def _few(answers: Answers, n: int, positives: int) -> list[str]:
    noun = f"validation {answers.level}s"
    if n == 0:
        return [f"No {noun} have a label: nothing could be chosen."]
    if positives == 0:
        return [f"None of the {n} {noun} is {answers.classes[-1]}: no threshold or temperature could be chosen."]
    found = []
    if positives == n:
        found.append(f"All {n} {noun} are {answers.classes[-1]}: only the rule-out threshold could be chosen.")
    if positives < FEW_POSITIVES:
        found.append(
            f"Only {positives} of the {n} {noun} {'is' if positives == 1 else 'are'} {answers.classes[-1]}: thresholds "
            "that hang on so few can be far off for others."
        )
    return found


def _of_detectors(run: RunDescription, run_dir: str | Path, metrics: Mapping[str, Any]) -> Rules:
    detections = read_rows(Path(run_dir) / DETECTIONS_FILE, list(DetectionColumn), remedy=TRAIN_AGAIN)
    path = Path(run_dir) / SEQUENCES_FILE
    sequences = read_table(path, ["patient_id", "frames", "boxes"], remedy=TRAIN_AGAIN)
    for table in (detections, sequences):
        check_patients(run, metrics, Split.VAL, table["patient_id"], run_dir)
    thresholds = read_thresholds(run_dir)
    unknown = sorted(set(detections["network"]) - set(thresholds))
    if unknown:
        raise InputError(f"{Path(run_dir) / METRICS_FILE}: thresholds lacks {unknown[0]!r}. {TRAIN_AGAIN}")
    with damaged(path, remedy=TRAIN_AGAIN):
        frames, boxes = (int(sequences[name].astype("int64").sum()) for name in ("frames", "boxes"))
    problems = []
    if boxes < FEW_POSITIVES:
        problems.append(
            f"The {frames} validation frames have {boxes or 'no'} annotated {'box' if boxes == 1 else 'boxes'}: "
            + (
                "thresholds that hang on so few can be far off for others."
                if boxes
                else f"no threshold is better than another, and a score of {DEFAULT_THRESHOLD:g} is taken."
            )
        )
    default = networks_by_default(metrics)
    problems += [
        f"{network_words(name)} finds none of the {boxes} validation boxes, or its scores are no numbers: no threshold "
        f"could be chosen for it, and a score of {DEFAULT_THRESHOLD:g} is taken."
        for name in default
        if boxes
    ]
    return _make(
        level="frame",
        aggregation=None,
        thresholds=MappingProxyType(
            {name: MappingProxyType({Point.BEST_F1.value: value}) for name, value in thresholds.items()}
        ),
        temperature=MappingProxyType({}),
        n=frames,
        positives=boxes,
        problems=tuple(problems),
        temperature_problems=(),
        by_default=default,
    )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
