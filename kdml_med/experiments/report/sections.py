"""The sections of a report, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from kdml_med.experiments.arms import Arm
from kdml_med.experiments.plan import named_arms
from kdml_med.experiments.report import figures as draw
from kdml_med.experiments.report.arm_words import settings_words
from kdml_med.experiments.report.content import Findings, of_group
from kdml_med.experiments.report.details import costs, diagnostics, loss_terms, missing, reliability, trainings
from kdml_med.experiments.report.methods import methods
from kdml_med.experiments.report.seeds import sweep_points
from kdml_med.experiments.report.verdict import (
    SIGNIFICANT,
    cautions,
    detectable_words,
    difference_line,
    doubt_lines,
    endpoint_words,
    sample_size,
    verdict,
)
from kdml_med.keys import Task
from kdml_med.report.caution import generated_data
from kdml_med.report.document import Bullets, Paragraph, Part, Picture, Section, Table, without_empty_columns
from kdml_med.report.tables import records
from kdml_med.report.wording import (
    capital,
    difference_with_interval,
    directed,
    figure,
    listed,
    metric_words,
    p_words,
    with_interval,
)
from kdml_med.words import counted

_ROLE_COLUMNS = ("teacher", "students", "ensemble")
_SIZE_NOTE = (
    "What these seeds could have shown: a true difference that a paired t-test over seeds finds in four of five such "
    "experiments, at 5 % divided by the number of arms, with the spread over seeds that was seen here and on these "
    "test samples. How much other patients would change is in the intervals."
)


def all_sections(found: Findings) -> list[Section]:
    """What a report says; sections with nothing to say are left out."""
    sections = [
        compared(found),
        synthetic_banner(found),
        verdicts(found),
        main_figures(found),
        differences(found),
        sweeps(found),
        costs(found),
        diagnostics(found),
        loss_terms(found),
        reliability(found),
        trainings(found),
        missing(found),
        methods(found),
    ]
    return [section for section in sections if section.parts]


def compared(found: Findings) -> Section:
    """The question, the data and the arms."""
    arms = named_arms(found.plan)
    steps = found.results[found.results["metric"] == "steps"]["value"]
    learned = f" Each learned for {_range(steps)} steps." if len(steps) else ""
    done = found.trainings - len(found.missing)
    finished = f"{done} of them finished" if found.missing else "all of them finished"
    question = (
        "Can small networks be trained better with the help of a larger one (the teacher, by knowledge distillation, "
        "KD) and of each other (the peers, by mutual learning, ML)? "
        f"{counted(len(arms), 'way')} to train the same networks (arms) were compared, each {_repeated(found)}: "
        f"{counted(found.trainings, 'training')}, {finished}.{learned} After training, the small networks (the "
        "students), alone or as an ensemble that averages their answers, do the work."
    )
    judged = Bullets([_judged(found, name) for name in sorted(found.evaluations)])
    table = Table(
        ["arm", "name in the plan", "students learn from", "settings of its own"],
        [[found.words[name], name, arm.description, _settings(arm, own)] for name, (arm, own) in arms.items()],
        names=4,
    )
    return Section("What was compared", [Paragraph(question), judged, without_empty_columns(table)])


def _settings(arm: Arm, added: Mapping[str, Any]) -> str:
    """What the plan adds, and what makes the arm; the weights that are 0 are in its description."""
    return settings_words({name: value for name, value in arm.settings.items() if name in added or value != 0})


def _repeated(found: Findings) -> str:
    seeds, folds = found.plan.seeds, found.plan.folds
    starts = f"random start{'' if len(seeds) == 1 else 's'} {listed([str(seed) for seed in seeds])}"
    text = f"with {counted(len(seeds), 'seed')} ({starts})"
    return f"{text} in each of {counted(len(folds), 'test fold')}" if folds else text


def _judged(found: Findings, name: str) -> str:
    """What an evaluation was made on, such as "Judged on 118 slides (12 patients) of data set glas (...)"."""
    one = found.evaluations[name]
    units = found.summary[found.summary["evaluation"] == name].head(1)
    samples = one.samples
    if len(units) and not samples.split()[1].startswith(units["unit"].iloc[0]):
        samples += f" of {counted(int(units['units'].iloc[0]), units['unit'].iloc[0])}"
    if found.plan.task is Task.DETECTION:
        wanted = f"to find: {one.classes[-1]}"
    else:
        wanted = f"{one.classes[-1]} against {listed(list(one.classes[:-1]))}"
    named = f"{name}: judged" if len(found.evaluations) > 1 else "Judged"
    return f"{named} on {samples}, data set {one.data} ({one.split} split; {wanted})."


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def synthetic_banner(found: Findings) -> Section:
    """A warning where figures say nothing about patients."""
    return generated_data() if any(one.synthetic for one in found.evaluations.values()) else Section("", [])


def verdicts(found: Findings) -> Section:
    """What the comparison shows, and how far it can be relied upon."""
    parts: list[Part] = []
    if found.missing:
        verb = "is" if len(found.missing) == 1 else "are"
        text = f"{len(found.missing)} of {found.trainings} trainings {verb} missing: figures can still change."
        parts.append(Paragraph(text, lead="Not finished."))
    known = found.comparisons["difference"].notna()
    if not (found.comparisons["reference"][known] == found.plan.reference).any():
        reference = found.words[found.plan.reference]
        parts.append(
            Paragraph(f"No arm can be compared with {reference} yet: that needs a seed with every fold of both.")
        )
    for _, _, heading, own in found.grouped(found.comparisons[known]):
        parts += _of_endpoints(found, found.families(own), _lead(heading))
        parts += _of_further_pairs(found, own, _lead(heading))
    parts += _doubts(found)
    return Section("Verdict", parts)


def _of_endpoints(found: Findings, families: list[pd.DataFrame], lead: str) -> list[Part]:
    """What the reference is better or worse than by each endpoint, and how far the seeds reach."""
    if not families:
        return []
    judged = "By each of the plan's endpoints:" if len(families) > 1 else "By the plan's endpoint:"
    parts: list[Part] = [Paragraph(judged, lead=lead)]
    parts.append(Bullets([verdict(family, found.words) for family in families]))
    # The lines of one endpoint suffice: those of the others are in the table of differences.
    parts.append(Paragraph(f"{endpoint_words(families[0].iloc[0])}, pair by pair:"))
    parts.append(Bullets([difference_line(row, found.words) for row in records(families[0])]))
    sizes = [text for family in families if (text := sample_size(family, found.words))]
    if sizes:
        parts += [Paragraph(_SIZE_NOTE, lead="Sample size."), Bullets(sizes)]
    return [*parts, *(Paragraph(text, lead="Caution.") for text in cautions(families[0]))]


def _of_further_pairs(found: Findings, own: pd.DataFrame, lead: str) -> list[Part]:
    """The plan's further pairs by its first endpoint; they are there without the reference, too."""
    further = own[own["reference"] != found.plan.reference]
    if further.empty:
        return []
    first = further.iloc[0]
    rows = records(further[(further["role"] == first["role"]) & (further["metric"] == first["metric"])])
    text = f"{endpoint_words(first)}, further pairs of the plan:"
    return [Paragraph(text, lead=lead), Bullets([difference_line(row, found.words) for row in rows])]


def _doubts(found: Findings) -> list[Part]:
    """What makes trainings poor witnesses, version by version."""
    parts: list[Part] = []
    for version in found.plan.versions if len(found.doubts) else ():
        where = f" (version {version})" if len(found.plan.versions) > 1 else ""
        own = found.doubts[found.doubts["version"] == version]
        parts += [Paragraph(text, lead=f"Warning{where}.") for text in doubt_lines(own, found.words)]
    return parts


def _lead(heading: str) -> str:
    return f"{heading}:" if heading else ""


def main_figures(found: Findings) -> Section:
    """The paper's table, then the other metrics."""
    parts: list[Part] = []
    for version, evaluation, heading, summary in found.grouped(found.summary):
        named = f" · {heading}" if heading else ""
        own = summary[summary["metric"] == found.metric]
        columns = ["arm", *_ROLE_COLUMNS, "seeds"]
        title = f"{metric_words(found.metric)} with 95 % intervals{named}"
        parts.append(Table(columns, _role_rows(own, found, with_seeds=True), title=title))
        if own["seeds"].nunique() > 1:
            text = (
                "Arms have different numbers of seeds so far: only the paired differences below compare like with like."
            )
            parts.append(Paragraph(text, lead="Caution."))
        seeds = of_group(found.seeds, version, evaluation)
        drawn = draw.draw_seeds(seeds, list(found.words), found.words, found.metric)
        if drawn is not None:
            caption = (
                f"{metric_words(found.metric)} of each seed{named}. A line joins what was trained with the same random "
                "start: where lines cross, the order of arms depends on chance."
            )
            parts.append(Picture(found.picture_file("seeds", version, evaluation), caption, drawn))
        for metric in dict.fromkeys(summary["metric"]):
            if metric != found.metric:
                rows = _role_rows(summary[summary["metric"] == metric], found)
                title = f"{capital(directed(metric))}{named}"
                parts.append(Table(["arm", *_ROLE_COLUMNS], rows, title=title))
    return Section("Accuracy", parts)


def _role_rows(summary: pd.DataFrame, found: Findings, *, with_seeds: bool = False) -> list[list[str]]:
    rows = []
    for arm, label in found.words.items():
        own = summary[summary["arm"] == arm]
        if own.empty:
            continue
        by_role = {row["role"]: with_interval(row["value"], row["low"], row["high"]) for row in records(own)}
        seeds = [str(int(own["seeds"].max()))] if with_seeds else []
        rows.append([label, *(by_role.get(role, "") for role in _ROLE_COLUMNS), *seeds])
    return rows


def differences(found: Findings) -> Section:
    """Paired differences by every endpoint as pictures and tables, and what an ensemble adds to its students."""
    parts: list[Part] = []
    reference = found.words[found.plan.reference]
    for version, evaluation, heading, own in found.grouped(found.comparisons):
        named = f" · {heading}" if heading else ""
        for metric in dict.fromkeys(endpoint.metric for endpoint in found.endpoints):
            families = found.families(own, metric=metric)
            if not families:
                continue
            rows = pd.concat(families)
            drawn = draw.draw_differences(rows, found.words)
            if drawn is not None:
                caption = (
                    f"{metric_words(metric)}: {reference} minus each other arm, with 95 % intervals and p values after "
                    f"Holm{named}. Filled: the interval excludes 0 and p < {SIGNIFICANT}; hollow: no difference shown."
                )
                kind = "differences" if metric == found.metric else f"differences_{metric}"
                parts.append(Picture(found.picture_file(kind, version, evaluation), caption, drawn))
            parts.append(_difference_table(rows, found, f"{reference} − other arm, {directed(metric)}{named}"))
        further = own[own["reference"] != found.plan.reference]
        if len(further):
            parts.append(_difference_table(further, found, f"Further pairs{named}", named_pairs=True))
        parts += _gain_tables(found, version, evaluation, named)
    return Section("Paired differences", parts)


def _difference_table(own: pd.DataFrame, found: Findings, title: str, *, named_pairs: bool = False) -> Table:
    """Rows of comparisons; with ``named_pairs`` each says its first arm and its metric."""
    rows = []
    for row in records(own):
        swaps = f"{int(row['permutations']):,}{' (all)' if row['exact'] else ''}"
        numbers = [figure(row["value_reference"]), figure(row["value_arm"])]
        numbers.append(difference_with_interval(row["difference"], row["low"], row["high"]))
        tests = [p_words(row[key]).removeprefix("p ").removeprefix("= ") for key in ("p_value", "p_holm")]
        paired = [counted(int(row["units"]), row["unit"]), str(int(row["seeds"])), swaps, _detectable(row)]
        name = found.words[row["arm"]]
        if named_pairs:
            name = f"{found.words[row['reference']]} − {name}, {metric_words(row['metric'])}"
        rows.append([row["role"], name, *numbers, *tests, *paired])
    first = ["pair", "first", "second"] if named_pairs else ["other arm", found.words[found.plan.reference], "other"]
    columns = ["role", *first, "difference", "p", "p after Holm", "pairs", "seeds", "swaps", "could be shown"]
    return Table(columns, rows, title=title, names=2)


def _detectable(row: Mapping[str, Any]) -> str:
    """The difference that the seeds could have shown; nothing where all differ by the same."""
    return detectable_words(row["detectable"]) if row["detectable"] > 0 else ""


def _gain_tables(found: Findings, version: str, evaluation: str, named: str) -> list[Part]:
    """What the ensemble adds to the mean of its students, arm by arm."""
    if found.gains.empty:
        return []
    own = of_group(found.gains, version, evaluation)
    parts: list[Part] = []
    for metric in dict.fromkeys(own["metric"]):
        rows = [
            [
                found.words[row["arm"]],
                figure(row["value_ensemble"]),
                figure(row["value_students"]),
                difference_with_interval(row["difference"], row["low"], row["high"]),
                str(int(row["seeds"])),
            ]
            for row in records(own[own["metric"] == metric])
        ]
        columns = ["arm", "ensemble", "students", "difference", "seeds"]
        parts.append(Table(columns, rows, title=f"Ensemble − mean student, {directed(metric)}{named}"))
    return parts


def sweeps(found: Findings) -> Section:
    """The metric against every swept setting."""
    parts: list[Part] = []
    for version, evaluation, heading in found.groups:
        for number, sweep in enumerate(sweep_points(found, version, evaluation), start=1):
            drawn = draw.draw_sweep(sweep.points, sweep.setting, found.metric)
            if drawn is not None:
                arm = found.words[sweep.arm]
                where = f" · {heading}" if heading else ""
                caption = f"{metric_words(found.metric)} of {arm} against {sweep.setting}, with 95 % intervals{where}."
                parts.append(Picture(found.picture_file(f"sweep-{number}", version, evaluation), caption, drawn))
    return Section("Sweeps", parts)
