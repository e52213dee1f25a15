"""All figures of a report of slides, before anything is written about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdml_med.clinical.answers import Answers, read_answers
from kdml_med.clinical.networks import Costs, count_costs
from kdml_med.clinical.plain import plain
from kdml_med.clinical.rules import Rules, rules_of_run
from kdml_med.clinical.slides.counting import count_flow
from kdml_med.clinical.slides.judging import (
    Judged,
    judge,
    judged_network,
    points_at,
    probabilities_of,
    why_undefined,
)
from kdml_med.clinical.slides.subgroups import SITE, check_known, group_values, read_label_columns, sites
from kdml_med.clinical.study import Study
from kdml_med.keys import NetworkName
from kdml_med.metrics.curves import Curve, roc_curve
from kdml_med.metrics.delong import delong_test
from kdml_med.metrics.operating import OperatingFigures
from kdml_med.program import progress_bar

RESAMPLES_OF_GROUPS = 1000


@dataclass(frozen=True)
class Subgroup:
    """Figures of the judged network on a part of an evaluation.

    Attributes:
        name: the value that its patients have.
        patients: with a label.
        n: patients or slides with a label.
        positives: of them.
        roc: its area is the AUROC; NaN where it is not defined.
        points: figures at each frozen threshold, by operating point.
        why_undefined: why figures are missing; empty where none is.
    """

    name: str
    patients: int
    n: int
    positives: int
    roc: Curve = field(repr=False)
    points: dict[str, OperatingFigures] = field(repr=False)
    why_undefined: str

    def content(self) -> dict[str, Any]:
        """Its figures as plain values, without points of curves."""
        own = {name: getattr(self, name) for name in ("name", "patients", "n", "positives", "why_undefined")}
        own |= {"auroc": [self.roc.area, self.roc.area_low, self.roc.area_high], "points": self.points}
        found: dict[str, Any] = plain(own)
        return found


@dataclass(frozen=True)
class Findings:
    """What a report of slides says.

    Attributes:
        study: of the run.
        rules: chosen on the validation patients of the run.
        answers: by evaluation.
        judged: by evaluation.
        network: that the report is about.
        subgroups: by evaluation, then by column.
        against_teacher: by evaluation and network: AUROC minus that of the teacher, low, high, p, by DeLong.
        costs: of the networks.
        temperature: whether scaled probabilities were asked for.
    """

    study: Study
    rules: Rules
    answers: dict[str, Answers] = field(repr=False)
    judged: dict[str, Judged]
    network: str
    subgroups: dict[str, dict[str, list[Subgroup]]] = field(repr=False)
    against_teacher: dict[str, dict[str, tuple[float, float, float, float]]]
    costs: Costs
    temperature: bool

    @property
    def level(self) -> str:
        """What carries a label, "patient" or "slide"."""
        return self.answers[self.study.validation.name].level

    @property
    def shown(self) -> list[Judged]:
        """Evaluations that curves are drawn of: those on other patients than chose the rules, if there are any."""
        return [self.judged[one.name] for one in self.study.judged or self.study.evaluations]

    @property
    def ordered(self) -> list[Judged]:
        """Every evaluation, validation last: its figures are too good."""
        names = [*(one.name for one in self.study.judged), self.study.validation.name]
        return [self.judged[name] for name in names]

    @property
    def owners(self) -> list[str]:
        """What patient_id is in the evaluations: "patient", or what stands for patients where they are not known."""
        return list(dict.fromkeys(self.owner_in(one.name) for one in self.ordered))

    def owner_in(self, name: str) -> str:
        """The same in one evaluation, whose intervals resample it."""
        return next(one.unit for one in self.study.evaluations if one.name == name)

    def content(self) -> dict[str, Any]:
        """Every figure as plain values, for report.json."""
        study = self.study
        return {
            "network": self.network,
            "rules": self.rules.plain(),
            "flow": None if study.dataset is None else plain(count_flow(study.dataset).content()),
            "evaluations": {name: plain(one) for name, one in self.judged.items()},
            "subgroups": {
                name: {column: [one.content() for one in groups] for column, groups in own.items()}
                for name, own in self.subgroups.items()
            },
            "against_teacher": plain(self.against_teacher),
            "networks": plain(self.costs),
        }


def find(
    study: Study,
    *,
    labels: Sequence[str | Path] = (),
    by: Sequence[str] = (),
    temperature: bool = False,
    speed: bool | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> Findings:
    """Judge every evaluation of a run.

    Args:
        study: of the run.
        labels: tables with the columns that subgroups are made by.
        by: these columns.
        temperature: show probabilities divided by the temperature that fits the validation patients, too.
        speed: measure the latency anew, or not at all; None measures what no earlier report knows.
        earlier: "networks" of an earlier report.json.

    Raises:
        InputError: the tables do not fit, see ``read_label_columns`` and ``check_known``; or the evaluations do not
            fit the run.
    """
    columns = read_label_columns(labels, by)
    rules = rules_of_run(study.folder)
    answers = {one.name: read_answers(study.folder, one.folder) for one in study.evaluations}
    level = answers[study.validation.name].level
    if columns is not None:
        check_known(columns, {name: one.table for name, one in answers.items()}, level)
    judged = {}
    with progress_bar(len(study.evaluations), what="figures", unit="evaluation") as bar:
        for one in study.evaluations:
            judged[one.name] = judge(
                answers[one.name], rules, name=one.name, title=one.title, role=one.role, temperature=temperature
            )
            bar.update()
    network = judged_network(study.validation.metrics["networks"])
    groups: dict[str, dict[str, list[Subgroup]]] = {}
    for one in study.judged or study.evaluations:
        table = answers[one.name].table
        own = {SITE: sites(one.dataset, table, level)}
        if columns is not None:
            own |= {column: columns.values(column, table, level) for column in columns.by_patient}
        groups[one.name] = {
            column: _judge_groups(answers[one.name], values, network, rules)
            for column, values in own.items()
            if values is not None and values.notna().any()
        }
    return Findings(
        study=study,
        rules=rules,
        answers=answers,
        judged=judged,
        network=network,
        subgroups=groups,
        against_teacher={name: _against_teacher(one) for name, one in answers.items()},
        costs=count_costs(study, earlier or {}, speed=speed),
        temperature=temperature,
    )


def _judge_groups(answers: Answers, values: pd.Series[Any], network: str, rules: Rules) -> list[Subgroup]:
    """AUROC and figures at the frozen thresholds; curves of a part of the patients are not shown, and not computed."""
    known = answers.table["label"].notna()
    thresholds = rules.thresholds.get(network, {})
    found = []
    for name, own in answers.table[known].groupby(group_values(values)[known], observed=True):
        labels, patients = own["label"].to_numpy(np.int64), own["patient_id"].to_numpy()
        probabilities = probabilities_of(own, network)
        found.append(
            Subgroup(
                name=str(name),
                patients=int(own["patient_id"].nunique()),
                n=len(own),
                positives=int(own["label"].sum()),
                roc=roc_curve(labels, probabilities, groups=patients, resamples=RESAMPLES_OF_GROUPS),
                points=points_at(labels, probabilities, thresholds, patients),
                why_undefined=why_undefined(own, network, answers.level),
            )
        )
    return found


def _against_teacher(answers: Answers) -> dict[str, tuple[float, float, float, float]]:
    known = answers.labelled
    if NetworkName.TEACHER not in answers.networks or known.empty:
        return {}
    labels, patients = known["label"].to_numpy(np.int64), known["patient_id"].to_numpy()
    teacher = probabilities_of(known, NetworkName.TEACHER)
    return {
        network: delong_test(labels, probabilities_of(known, network), teacher, groups=patients)
        for network in answers.networks
        if network != NetworkName.TEACHER
    }
