"""What the report of a comparison is written from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from kdml_med.experiments.endpoints import Endpoint
from kdml_med.experiments.plan import Plan
from kdml_med.experiments.report.arm_words import arm_words
from kdml_med.networks.registry import NetworkSpec


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation was made on.

    Attributes:
        data: folder name of the dataset.
        split: of the dataset.
        classes: names, the one that is looked for last.
        samples: judged in each repetition, such as "118 slides".
        synthetic: whether the data are generated.
    """

    data: str
    split: str
    classes: Sequence[str]
    samples: str
    synthetic: bool


@dataclass(frozen=True)
class ArmNetworks:
    """What an arm has trained.

    Attributes:
        specs: of its networks by name, as in tables; without the ensemble.
        image_size: (height, width) of their input, pixels.
    """

    specs: Mapping[str, NetworkSpec]
    image_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a report is written from.

    Attributes:
        plan: what was to be done.
        trainings: number in the plan.
        missing: folder of each training that is not done, and why.
        results: see ``kdml_med.experiments.results.results_table``.
        summary: see ``kdml_med.experiments.comparison.summary_table``.
        seeds: see ``kdml_med.experiments.report.seeds.seed_table``.
        comparisons: see ``kdml_med.experiments.comparison.comparison_table``.
        diagnostics: see ``kdml_med.experiments.diagnostics.diagnostics_table``.
        losses: see ``kdml_med.experiments.diagnostics.loss_shares``.
        evaluations: by name.
        networks: of every arm that has finished a training, by version and arm.
        speed: content of speed.json; empty when nothing was measured.
        reliability: reliability table of each evaluation; missing for detectors.
        gains: see ``kdml_med.experiments.comparison.gain_table``; empty where nothing was computed.
        doubts: see ``kdml_med.experiments.doubts.doubt_table``; likewise.
    """

    plan: Plan
    trainings: int
    missing: Sequence[tuple[str, str]]
    results: pd.DataFrame
    summary: pd.DataFrame
    seeds: pd.DataFrame
    comparisons: pd.DataFrame
    diagnostics: pd.DataFrame
    losses: pd.DataFrame
    evaluations: Mapping[str, Evaluation]
    networks: Mapping[str, Mapping[str, ArmNetworks]]
    speed: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    gains: pd.DataFrame = field(default_factory=pd.DataFrame)
    doubts: pd.DataFrame = field(default_factory=pd.DataFrame)

    @cached_property
    def words(self) -> dict[str, str]:
        """What to call each arm, in the order of the plan."""
        return arm_words(self.plan)

    @property
    def metric(self) -> str:
        """What the arms are compared by."""
        return self.plan.primary_metric

    @cached_property
    def endpoints(self) -> list[Endpoint]:
        """What was said beforehand to be compared, as far as there are figures of it, in the order of the plan."""
        known = set(zip(self.comparisons["role"], self.comparisons["metric"], strict=True))
        return [endpoint for endpoint in self.plan.compared if (endpoint.role, endpoint.metric) in known]

    def families(self, own: pd.DataFrame, *, metric: str | None = None) -> list[pd.DataFrame]:
        """Comparisons of the reference with all other arms that are corrected together: one table for each endpoint.

        Args:
            own: rows of one version and evaluation.
            metric: only of endpoints with this one; None for all.
        """
        with_reference = own[own["reference"] == self.plan.reference]
        parts = [
            with_reference[(with_reference["role"] == endpoint.role) & (with_reference["metric"] == endpoint.metric)]
            for endpoint in self.endpoints
            if metric in (None, endpoint.metric)
        ]
        return [part for part in parts if len(part)]

    @property
    def groups(self) -> list[tuple[str, str, str]]:
        """Version, evaluation and a heading that names as much of both as is needed."""
        versions, evaluations = list(self.plan.versions), sorted(self.evaluations)
        return [
            (version, evaluation, " · ".join([
                *([f"version {version}"] if len(versions) > 1 else []),
                *([evaluation] if len(evaluations) > 1 else []),
            ]))
            for version in versions
            for evaluation in evaluations
        ]  # fmt: skip

    def grouped(self, table: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
        """The groups that a table has rows of, each with its rows."""
        for version, evaluation, heading in self.groups:
            own = of_group(table, version, evaluation)
            if len(own):
                yield version, evaluation, heading, own

    def picture_file(self, kind: str, version: str, evaluation: str = "") -> str:
        """Name of a figure's file; versions and evaluations are named where there are several."""
        parts = [kind]
        if len(self.plan.versions) > 1:
            parts.append(version)
        if evaluation and len(self.evaluations) > 1:
            parts.append(evaluation)
        return "-".join(parts) + ".png"

    @property
    def primary(self) -> pd.DataFrame:
        """Rows of ``results`` that hold the metric the arms are compared by."""
        return rows_of_metric(self.results, self.metric)


def rows_of_metric(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of a results table that hold a metric of ``kdml_med.experiments.endpoints.ENDPOINT_METRICS``."""
    levels = results["level"]
    wanted = levels == "tile" if metric.startswith("tile_") else ~levels.isin(["tile", "network"])
    return results[wanted & (results["metric"] == metric.removeprefix("tile_"))]


def of_group(table: pd.DataFrame, version: str, evaluation: str) -> pd.DataFrame:
    """Rows of one version and evaluation."""
    return table[(table["version"] == version) & (table["evaluation"] == evaluation)]
