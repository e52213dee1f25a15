"""The later sections of a report: costs, diagnostics, losses, and every training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from kdml_med.experiments.costs import known_latency
from kdml_med.experiments.report import figures as draw
from kdml_med.experiments.report.arm_words import DIAGNOSTIC_WORDS, diagnostic_words
from kdml_med.experiments.report.content import ArmNetworks, Findings, of_group
from kdml_med.experiments.scores import network_roles
from kdml_med.keys import NetworkName, network_order
from kdml_med.networks.registry import architecture_words
from kdml_med.report.document import Paragraph, Part, Picture, Section, Table, without_empty_columns
from kdml_med.report.tables import records
from kdml_med.report.wording import (
    ENSEMBLE_COST,
    figure,
    if_busy,
    listed,
    metric_words,
    network_words,
    term_words,
    with_interval,
)
from kdml_med.words import counted

_MISSING_SHOWN = 40
_NOT_TIMED = "–"
_DIAGNOSTICS_NOTE = (
    "Mean over trainings, in brackets the smallest and the largest. Students differ: share of decisions in which two "
    "of them do. Their errors correlate: at 1 they err together, and an ensemble of them gains nothing. Students "
    "decide as the teacher: share of decisions; where an arm has no teacher, the one trained alone. Brier score and "
    "calibration error: of the ensemble (of the teacher alone: of the teacher), 0 is best. Decisions are at a "
    "probability of 0.5; of detectors, whether an annotated polyp is found at the network's threshold."
)


def costs(found: Findings) -> Section:
    """What each network costs in use."""
    own = found.results[found.results["level"] == "network"]
    if own.empty:
        return Section("Costs", [])
    wide = own.pivot_table(index=["version", "arm", "network"], columns="metric", values="value", aggfunc="first")
    rows: dict[tuple[str, ...], list[str]] = {}
    for version, arm, network in sorted(
        wide.index, key=lambda key: (key[0], network_order(key[2]), _place(found, key[1]))
    ):
        figures: dict[Any, float] = wide.xs((version, arm, network)).to_dict()
        own_networks = found.networks[version][arm]
        measured = found.speed.get("versions", {}).get(version, {})
        taken = known_latency(measured, own_networks.specs, own_networks.image_size, network)
        row = [
            _architecture(own_networks, network),
            f"{figures['parameters']:,.0f}",
            f"{figures['multiply_accumulates'] / 1e6:,.1f}",
            figure(figures["bytes_on_disk"] / 1e6, 2),
            _NOT_TIMED if taken is None else figure(taken, 1),
        ]
        rows.setdefault((version, network, *row), []).append(arm)
    arms_differ = len(rows) > len({key[:2] for key in rows})
    table = _cost_table(found, rows, arms_differ=arms_differ)
    untimed = any(key[-1] == _NOT_TIMED for key in rows)
    parts: list[Part] = [Paragraph(_latency_note(found, untimed=untimed)), table]
    for version, evaluation, heading in found.groups:
        points = _cost_points(found, wide, version, evaluation)
        drawn = draw.draw_costs(points, found.words, found.metric)
        if drawn is not None:
            where = f" · {heading}" if heading else ""
            caption = f"{metric_words(found.metric)} with 95 % intervals against what one image costs{where}."
            parts.append(Picture(found.picture_file("costs", version, evaluation), caption, drawn))
    return Section("Costs", parts)


def _place(found: Findings, arm: str) -> int:
    return list(found.words).index(arm)


def _architecture(networks: ArmNetworks, name: str) -> str:
    if name != NetworkName.ENSEMBLE:
        return architecture_words(networks.specs[name])
    return counted(sum(own != NetworkName.TEACHER for own in networks.specs), "student")


def _cost_table(found: Findings, rows: dict[tuple[str, ...], list[str]], *, arms_differ: bool) -> Table:
    cells = []
    for (version, network, *figures), arms in rows.items():
        # One version needs no column.
        line = [version if len(found.plan.versions) > 1 else "", network_words(network), *figures]
        cells.append([*line, listed([found.words[arm] for arm in arms])] if arms_differ else line)
    columns = ["version", "network", "architecture", "parameters", "multiply–accumulates, million", "MB on disk"]
    columns.append("ms per image")
    return without_empty_columns(Table([*columns, "arms"] if arms_differ else columns, cells, names=3))


def _latency_note(found: Findings, *, untimed: bool) -> str:
    if not found.speed.get("versions"):
        return f"{ENSEMBLE_COST} The latency was not measured."
    sizes = {" × ".join(map(str, one["image_size"])) for one in found.speed["versions"].values()}
    shares = [one["cpu_share"] for one in found.speed["versions"].values()]
    dash = f" {_NOT_TIMED} stands where an arm's networks or images are not those that were timed." if untimed else ""
    return (
        f"{ENSEMBLE_COST} Latency: one image ({listed(sorted(sizes))} px) at a time on {found.speed['device']}, "
        f"{counted(found.speed['threads'], 'thread')}, median of rounds in which all networks take turns. "
        f"Times are those of this machine; what counts is how networks compare.{dash}{if_busy(min(shares))}"
    )


def _cost_points(found: Findings, wide: pd.DataFrame, version: str, evaluation: str) -> pd.DataFrame:
    """Metric and cost by arm and role; the cost of the students is that of a mean one."""
    summary = of_group(found.summary, version, evaluation)
    points = summary[summary["metric"] == found.metric][["arm", "role", "value", "low", "high"]]
    table = wide["multiply_accumulates"].reset_index()
    table = table[table["version"] == version]
    costs = (
        table.assign(role=network_roles(table["network"]))
        .groupby(["arm", "role"], as_index=False)["multiply_accumulates"]
        .mean()
    )
    return points.merge(costs, on=["arm", "role"], how="left")


def diagnostics(found: Findings) -> Section:
    """Whether students differ, follow their teacher and are calibrated."""
    parts: list[Part] = []
    for _, _, heading, own in found.grouped(found.diagnostics.dropna(subset=["value"])):
        cells: dict[str, dict[tuple[str, str], str]] = {}
        for row in records(own):
            name, level = diagnostic_words(row["diagnostic"])
            table = "box" if level == "detection" else level  # too few of them for a table of their own
            cells.setdefault(table, {})[row["arm"], name] = _spread(row)
        for level, figures in cells.items():
            known = list(DIAGNOSTIC_WORDS.values())
            names = list(dict.fromkeys(name for _, name in figures))
            names.sort(key=lambda name: known.index(name) if name in known else len(known))
            rows = [
                [label, *(figures.get((arm, name), "") for name in names)]
                for arm, label in found.words.items()
                if any(key[0] == arm for key in figures)
            ]
            title = " · ".join(filter(None, [f"By {level}", heading]))
            parts.append(Table(["arm", *names], rows, title=title))
    return Section("Diagnostics", [Paragraph(_DIAGNOSTICS_NOTE), *parts] if parts else [])


def _spread(row: Mapping[str, Any]) -> str:
    """Mean over trainings with the smallest and the largest value."""
    if int(row["runs"]) == 1:
        return figure(row["value"])
    return f"{figure(row['value'])} ({figure(row['smallest'])}–{figure(row['largest'])})"


def loss_terms(found: Findings) -> Section:
    """What the students learned from, epoch by epoch."""
    parts: list[Part] = []
    for version in found.plan.versions:
        own = found.losses[found.losses["version"] == version]
        drawn = draw.draw_loss_shares(own, list(found.words), found.words)
        if drawn is not None:
            where = f" · version {version}" if len(found.plan.versions) > 1 else ""
            caption = f"Share of the weighted loss of the students by what they learn from, by epoch{where}."
            parts.append(Picture(found.picture_file("loss_shares", version), caption, drawn))
            parts.append(_last_shares(found, own, f"Shares in the last epoch{where}"))
    return Section("Loss shares", parts)


def _last_shares(found: Findings, own: pd.DataFrame, title: str) -> Table:
    """Shares that are too small to be seen in the picture."""
    terms = term_words(own["term"])
    rows = []
    for arm, label in found.words.items():
        arm_rows = own[own["arm"] == arm]
        last = {row["term"]: row["share"] for row in records(arm_rows[arm_rows["epoch"] == arm_rows["epoch"].max()])}
        if last:
            rows.append([label, *(f"{100 * last[term]:.1f} %" if term in last else "" for term in terms)])
    return Table(["arm", *terms.values()], rows, title=title)


def reliability(found: Findings) -> Section:
    """Whether probabilities mean what they say."""
    parts: list[Part] = []
    for version, evaluation, heading in found.groups:
        table = found.reliability.get(evaluation, pd.DataFrame({"version": []}))
        own = table[table["version"] == version]
        classes = found.evaluations[evaluation].classes
        drawn = draw.draw_reliability(own, list(found.words), found.words, classes[-1]) if len(own) else None
        if drawn is not None:
            caption = (
                "Ensemble (of the teacher alone: the teacher), all seeds and folds together, in fifths of the answers. "
                f"On the dashed line, probabilities mean what they say{f' · {heading}' if heading else ''}."
            )
            parts.append(Picture(found.picture_file("reliability", version, evaluation), caption, drawn))
    return Section("Calibration", parts)


def trainings(found: Findings) -> Section:
    """Figures of every single training."""
    parts: list[Part] = []
    for _, _, heading, own in found.grouped(found.primary):
        networks = sorted(own["network"].unique(), key=network_order)
        rows = []
        for _, one in own.groupby(["arm", "seed", "fold"], sort=False, dropna=False):
            by_network = {row["network"]: row for row in records(one)}
            first = records(one)[0]
            figures = [with_interval(**_numbers(by_network[name])) if name in by_network else "" for name in networks]
            place = [str(first["seed"]), *([str(first["fold"])] if found.plan.folds else [])]
            rows.append([found.words[first["arm"]], *place, *figures, str(first["n"])])
        columns = ["arm", "seed", *(["fold"] if found.plan.folds else []), *map(network_words, networks), "n"]
        title = f"{metric_words(found.metric)}{f' · {heading}' if heading else ''}"
        parts.append(Table(columns, rows, title=title))
    return Section("Every training", parts)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(row[key]) for key in ("value", "low", "high")}


def missing(found: Findings) -> Section:
    """Trainings that are not there, and why."""
    if not found.missing:
        return Section("Missing trainings", [])
    rows = [[path, reason] for path, reason in found.missing[:_MISSING_SHOWN]]
    parts: list[Part] = [Table(["training", "reason"], rows, names=2)]
    if len(found.missing) > _MISSING_SHOWN:
        parts.append(Paragraph(f"… and {len(found.missing) - _MISSING_SHOWN} more."))
    return Section("Missing trainings", parts)
