import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kdml_med.errors import ExitCode
from kdml_med.experiments import comparison
from kdml_med.experiments.__main__ import report as report_command
from kdml_med.experiments.doubts import doubt_table
from kdml_med.experiments.plan import plan_content
from kdml_med.experiments.report import figures
from kdml_med.experiments.report.arm_words import ARM_WORDS
from kdml_med.experiments.report.details import loss_terms
from kdml_med.experiments.report.reliability import bin_rows, reliability_table
from kdml_med.experiments.report.sections import all_sections, sweeps
from kdml_med.experiments.report.sections import compared as compared_section
from kdml_med.experiments.report.seeds import sweep_points
from kdml_med.experiments.report.verdict import (
    DOUBT_WORDS,
    Outcome,
    cautions,
    difference_line,
    doubt_lines,
    outcome,
    sample_size,
    verdict,
)
from kdml_med.experiments.report.writing import find, write_report
from kdml_med.experiments.results import collect
from kdml_med.keys import Task
from kdml_med.metrics import pairs_needed
from kdml_med.report import pages
from kdml_med.report.doubts import DOUBTS
from kdml_med.report.figures import save_figure
from kdml_med.report.pages import write_pages
from kdml_med.storage.files import write_json
from tests.experiments.findings import compared, made_up_findings
from tests.experiments.folders import random_tiles, tile_plan, write_results

WIN = {"difference": 0.08, "low": 0.03, "high": 0.13, "p": 0.004}
LOSS = {"difference": -0.08, "low": -0.13, "high": -0.03, "p": 0.004}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report, with a figure of an earlier one left in its folder."""
    out = tmp_path_factory.mktemp("report")
    (out / "figures").mkdir()
    (out / "figures" / "sweep-7.png").write_bytes(b"")
    (out / "report.md").write_text("![a sweep](figures/sweep-7.png)")
    found = made_up_findings(missing=[("cells/edge/ml/seed2", "it crashed")])
    write_pages(out, found.plan.name, all_sections(found))
    return out


def words_of(found):
    """Everything that the sections of a report say, tables included; drawing is slow and left out."""
    texts = []
    for section in all_sections(found):
        for part in section.parts:
            texts += [
                getattr(part, "text", ""),
                *getattr(part, "items", []),
                *itertools.chain(*getattr(part, "rows", [])),
            ]
    return "\n".join(texts)


def said(*rows):
    return verdict(pd.DataFrame(rows), ARM_WORDS)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (compared(**WIN), Outcome.BETTER),
        (compared(**LOSS), Outcome.WORSE),
        (compared(**WIN) | {"metric": "brier"}, Outcome.WORSE),
        (compared(difference=0.08, low=-0.001, high=0.13, p=0.004), Outcome.UNDECIDED),
        (compared(difference=0.08, low=0.0, high=0.13, p=0.004), Outcome.UNDECIDED),
        (compared(difference=0.08, low=0.03, high=0.13, p=0.05), Outcome.UNDECIDED),
        (compared(difference=0.08, low=float("nan"), high=float("nan"), p=0.004), Outcome.UNDECIDED),
        (compared(difference=0.08, low=0.03, high=0.13, p=float("nan")), Outcome.UNDECIDED),
    ],
)
def test_a_difference_counts_only_with_its_interval_and_its_p_value(row, expected):
    assert outcome(row) is expected


def test_the_verdict_names_who_wins_and_who_loses_and_what_is_open():
    text = said(compared("independent", **WIN), compared("kd_online", **LOSS), compared("ml"))
    assert "KD + ML is better than labels only" in text
    assert "KD + ML is worse than online KD" in text
    assert "no difference is shown to mutual learning" in text


def test_nothing_is_called_better_when_nothing_is_shown():
    row = compared("ml")
    assert said(row) == "Ensemble of the students, AUROC: no difference of KD + ML is shown to mutual learning."
    for text in (said(row), difference_line(row, ARM_WORDS)):
        assert "better" not in text
        assert "worse" not in text
    assert difference_line(row, ARM_WORDS) == (
        "KD + ML − mutual learning: +0.012 (−0.020 to 0.045), p = 0.41 after Holm: no difference shown"
    )


def test_a_win_of_one_seed_is_called_that_of_one_seed():
    assert "with this one seed" in said(compared(**WIN, seeds=1))


def test_enough_patients_and_seeds_need_no_caution():
    assert cautions(pd.DataFrame([compared()])) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"units": 12, "exact": True}, "Only 12 patients"),
        ({"seeds": 2}, "Only 2 seeds"),
        ({"units": 5, "exact": True}, "no p value after Holm can be below 0.062"),
    ],
)
def test_too_little_data_is_said(change, expected):
    assert expected in " ".join(cautions(pd.DataFrame([compared(**change)])))


def test_the_number_of_comparisons_counts_towards_the_smallest_p_value():
    rows = [compared(arm, units=6, exact=True) for arm in ("ml", "kd_online")]
    assert not any("no p value" in text for text in cautions(pd.DataFrame(rows[:1])))
    assert any("no p value after Holm can be below 0.062" in text for text in cautions(pd.DataFrame(rows)))


def test_the_sample_size_line_names_what_could_have_been_shown_and_the_seeds_that_a_small_difference_needs():
    rows = [
        compared("ml", pairs=20, seeds=20, seed_sd=0.01, detectable=0.0078),
        compared("kd_online", pairs=20, seeds=20, seed_sd=0.0025, detectable=0.0019),
    ]
    assert sample_size(pd.DataFrame(rows), ARM_WORDS) == (
        "Ensemble of the students, AUROC: 20 seeds could have shown a difference of 0.0019 (from online KD) to 0.0078 "
        f"(from mutual learning); 0.002 needs {pairs_needed(0.002, 0.0025, alpha=0.025)} to "
        f"{pairs_needed(0.002, 0.01, alpha=0.025)}."
    )
    assert sample_size(pd.DataFrame([compared(detectable=float("nan"))]), ARM_WORDS) == ""


def test_the_sample_size_line_counts_what_was_paired_and_leaves_out_what_has_no_spread():
    rows = [
        compared("ml", pairs=6, detectable=0.02),
        compared("kd_online", pairs=4, seeds=2, detectable=0.01),
        compared("independent", pairs=6, seed_sd=0.0, detectable=0.0),
        compared("kd_offline", p=float("nan"), seed_sd=float("nan"), detectable=float("nan")),
    ]
    needed = pairs_needed(0.002, 0.01, alpha=0.05 / 3)  # the arm without a p value is no test
    assert sample_size(pd.DataFrame(rows), ARM_WORDS) == (
        "Ensemble of the students, AUROC: 4 to 6 pairs of trainings could have shown a difference of 0.0100 (from "
        f"online KD) to 0.0200 (from mutual learning); 0.002 needs {needed}."
    )
    assert sample_size(pd.DataFrame(rows[2:3]), ARM_WORDS) == ""
    assert "a difference of more than 1 (from" in sample_size(pd.DataFrame([compared(detectable=1.9)]), ARM_WORDS)


def test_further_pairs_are_told_where_the_reference_is_missing():
    row = compared("independent", "ensemble", 0.06, 0.01, 0.11, 0.02) | {"reference": "kd_online"}
    found = made_up_findings(comparisons=[row], contrasts=[["kd_online", "independent"]])
    text = words_of(found)
    assert "online KD − labels only: +0.060 (0.010 to 0.110), p = 0.020 after Holm: online KD is better" in text
    assert "No arm can be compared with KD + ML yet" in text
    assert "No arm can be compared" not in words_of(made_up_findings())


def test_names_of_arms_hold_no_comma_and_settings_that_a_plan_changes_are_shown():
    assert not any("," in words for words in ARM_WORDS.values())
    arms = ["kdml", "kd_strong", {"name": "kdml_head_start", "settings": {"teacher_warmup_epochs": 4}}]
    found = made_up_findings(arms=arms)
    assert found.words["kdml_head_start"] == "KD + ML with a head start (teacher warmup epochs 4)"
    (table,) = (part for part in compared_section(found).parts if hasattr(part, "rows"))
    shown = {row[1]: row[-1] for row in table.rows}
    assert shown == {"kdml": "", "kd_strong": "beta 2.0", "kdml_head_start": "teacher warmup epochs 4"}


def test_a_sweep_shows_the_points_of_its_own_arm_alone():
    sweeps = [{"arm": "kdml", "beta": [0.5, 2]}, {"arm": "kd_online", "beta": [0.5, 2]}]
    alike = {"name": "alike", "settings": {"beta": 2}}
    found = made_up_findings(arms=["kdml", alike], sweeps=sweeps)
    values = {"kdml_beta=0.5": 0.9, "kdml_beta=2": 0.92, "kd_online_beta=0.5": 0.7, "kd_online_beta=2": 0.72}
    place = {"version": "edge", "evaluation": "test", "role": "ensemble", "metric": "auroc", "low": 0.5, "high": 1.0}
    rows = [{**place, "arm": arm, "value": value} for arm, value in (values | {"alike": 0.1, "kdml": 0.2}).items()]
    shown = sweep_points(replace(found, summary=pd.DataFrame(rows)), "edge", "test")
    points = {sweep.arm: dict(zip(sweep.points["setting"], sweep.points["value"], strict=True)) for sweep in shown}
    assert points == {"kdml": {0.5: 0.9, 2: 0.92}, "kd_online": {0.5: 0.7, 2: 0.72}}


def test_endpoints_further_pairs_and_gains_are_told():
    row = {"version": "edge", "evaluation": "test", "metric": "auroc", "arm": "ml", "value_ensemble": 0.85}
    gain = row | {"value_students": 0.84, "difference": 0.01, "low": 0.002, "high": 0.02, "seeds": 3}
    comparisons = [
        compared("ml", "ensemble", **WIN),
        compared("ml", "ensemble", **LOSS) | {"metric": "brier"},
        compared("independent", "ensemble", 0.06, 0.01, 0.11, 0.02) | {"reference": "kd_online"},
    ]
    found = made_up_findings(
        comparisons=comparisons,
        endpoints=["ensemble", "ensemble_brier"],
        contrasts=[["kd_online", "independent"]],
    )
    text = words_of(replace(found, gains=pd.DataFrame([gain])))
    assert "Ensemble of the students, AUROC: KD + ML is better than mutual learning." in text
    assert "Ensemble of the students, Brier score (lower is better): KD + ML is better than mutual learning." in text
    assert "online KD − labels only: +0.060 (0.010 to 0.110), p = 0.020 after Holm: online KD is better" in text
    titles = [
        getattr(part, "title", "") or getattr(part, "name", "")
        for section in all_sections(found)
        if section.title == "Paired differences"
        for part in section.parts
    ]
    assert titles == [
        "differences.png",
        "KD + ML − other arm, AUROC",
        "differences_brier.png",
        "KD + ML − other arm, Brier score (lower is better)",
        "Further pairs",
    ]
    assert "0.850\n0.840\n+0.010 (0.002 to 0.020)" in text
    assert "3 seeds could have shown a difference of 0.0300 (from mutual learning)" in text


def test_every_doubt_has_words():
    assert set(DOUBT_WORDS) == set(DOUBTS)


def test_a_weak_teacher_alike_students_and_short_trainings_are_said():
    rows = [("weak_teacher", "kdml", 2), ("weak_teacher", "kd_online", 3), ("alike", "ml", 3)]
    doubts = [{"version": "edge", "arm": arm, "doubt": doubt, "trainings": n, "of": 3} for doubt, arm, n in rows]
    assert doubt_lines(pd.DataFrame(doubts), ARM_WORDS) == [
        "The teacher is no better than its students on the validation split: KD + ML (2 of 3 trainings) and online KD "
        "(3 of 3 trainings). Distillation has little to give there, whatever the arm is called.",
        "The students err alike on the validation split (correlation of their errors above 0.98): mutual learning (3 "
        "of 3 trainings). Neither peers nor an ensemble can add much there.",
    ]
    text = words_of(replace(made_up_findings(), doubts=pd.DataFrame(doubts)))
    assert "whatever the arm is called" in text
    assert "have not learned all" not in text
    assert "whatever the arm is called" not in words_of(made_up_findings())


def test_trainings_that_warned_are_counted(tmp_path):
    plan = tile_plan(tmp_path, arms=["independent", "kdml"], seeds=[0, 1])
    write_results(plan, tmp_path / "out")
    for seed, warned in ((0, {"alike": "…", "weak_teacher": "…"}), (1, {"alike": "…"})):
        path = tmp_path / "out" / "cells/edge/kdml" / f"seed{seed}" / "metrics.json"
        write_json(path, json.loads(path.read_text()) | {"warnings": warned})
    table = doubt_table(collect(plan, tmp_path / "out"))
    assert table.to_numpy().tolist() == [["edge", "kdml", "weak_teacher", 1, 2], ["edge", "kdml", "alike", 2, 2]]


def test_pages_and_figures_are_the_same_bytes_twice(tmp_path):
    found = made_up_findings()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_pages(tmp_path / name, "Twice", all_sections(found)[:5])
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert {"report.md", "report.html", "figures/differences.png", "figures/seeds.png"} <= set(map(str, files))
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_every_figure_is_written_and_shown(written):
    names = {path.name for path in (written / "figures").iterdir()}
    assert names == {"costs.png", "differences.png", "loss_shares.png", "reliability.png", "seeds.png"}
    assert (written / "report.html").read_text().count("<svg ") == len(names)
    assert (written / "report.md").read_text().count("](figures/") == len(names)


def test_missing_trainings_are_listed_with_their_reason(written):
    for name in ("report.md", "report.html"):
        text = (written / name).read_text()
        assert "cells/edge/ml/seed2" in text
        assert "it crashed" in text
        assert "1 of 18 trainings is missing" in text


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_are_announced(synthetic):
    text = words_of(made_up_findings(synthetic=synthetic))
    assert ("say nothing about accuracy on patients" in text) is synthetic


def test_more_seeds_than_colours_are_drawn_alike():
    rows = [{"arm": "kdml", "role": "ensemble", "seed": seed, "value": seed / 100} for seed in range(20)]
    few, many = (
        figures.draw_seeds(pd.DataFrame(part), ["kdml"], ARM_WORDS, "auroc").legends[0].get_texts()
        for part in (rows[:3], rows)
    )
    assert [text.get_text() for text in few] == ["seed 0", "seed 1", "seed 2", "mean"]
    assert [text.get_text() for text in many] == ["each seed", "mean"]


def test_arms_with_different_seeds_are_not_to_be_compared_by_their_means():
    found = made_up_findings()
    assert "different numbers of seeds" not in words_of(found)
    fewer = found.summary.assign(seeds=found.summary["seeds"].where(found.summary["arm"] != "kdml", 1))
    assert "different numbers of seeds" in words_of(replace(found, summary=fewer))


def test_a_report_of_nothing_says_so():
    found = made_up_findings()
    tables = ("results", "summary", "seeds", "comparisons", "diagnostics", "losses")
    empty = {name: getattr(found, name).head(0) for name in tables}
    nothing = replace(found, **empty, evaluations={}, speed={}, networks={}, reliability={})
    assert "No arm can be compared with KD + ML yet" in words_of(nothing)


def test_a_sweep_is_drawn_and_named_in_words():
    found = made_up_findings(sweeps=[{"arm": "kdml", "beta": [0.5, 2]}])
    rows = found.summary[found.summary["arm"] == "kdml"]
    swept = replace(found, summary=pd.concat([rows.assign(arm=f"kdml_beta={beta}") for beta in (0.5, 2)]))
    assert [part.name for section in all_sections(swept) if section.title == "Sweeps" for part in section.parts] == [
        "sweep-1.png"
    ]
    assert "KD + ML (beta 0.5)" in words_of(swept)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("setting", "values", "ticks"),
    [
        ("teacher_link", [["predictions", "features"], "features"], ["features", "predictions+features"]),
        ("early_stopping", [None, 3, 5], ["3", "5", "None"]),
        ("early_stopping", [None, 3], ["3", "None"]),
    ],
)
def test_a_sweep_over_lists_or_null_shows_all_of_its_points(tmp_path, setting, values, ticks):
    plan = tile_plan(tmp_path, arms=["kdml"], sweeps=[{"arm": "kdml", setting: values}])
    write_results(plan, tmp_path / "out")
    report = write_report(plan, tmp_path / "out", speed=False)
    assert "figures/sweep-1.png" in report.files
    (picture,) = sweeps(report.found).parts
    for axis in picture.figure.axes:
        (line,) = axis.lines
        assert [text.get_text() for text in axis.get_xticklabels()] == ticks
        assert line.get_xdata().tolist() == axis.get_xticks().tolist()


def test_terms_of_losses_of_ones_own_are_drawn_and_listed_behind_the_known_ones():
    found = made_up_findings()
    norms = found.losses[found.losses["term"] == "labels"].assign(term="answer_norm", share=0.25)
    parts = loss_terms(replace(found, losses=pd.concat([norms, found.losses]))).parts
    labels = ["labels", "teacher (KD)", "peers (ML)", "answer_norm"]
    assert parts[1].columns == ["arm", *labels]
    assert [row[-1] for row in parts[1].rows] == ["25.0 %"] * 3
    (legend,) = parts[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == labels
    assert len({handle.get_color() for handle in legend.legend_handles}) == 4


def test_reliability_bins_hold_equally_many_answers():
    probabilities = np.linspace(0, 1, 50)
    rows = bin_rows((probabilities > 0.5).astype(float), probabilities)
    assert [row["n"] for row in rows] == [10] * 5
    assert [row["observed"] for row in rows] == [0, 0, 0.5, 1, 1]
    assert rows[2]["predicted"] == pytest.approx(0.5)


@pytest.mark.parametrize("shared", [True, False])
def test_calibration_needs_forty_patients_however_many_folds_judge_them(tmp_path, shared):
    def make(cell, evaluation):
        return random_tiles(cell, evaluation, patients=20, shared=shared)

    plan = tile_plan(tmp_path, arms=["independent", "kdml"], folds=[0, 1, 2])
    write_results(plan, tmp_path / "out", make)
    assert reliability_table(collect(plan, tmp_path / "out"), "test").empty is shared


@pytest.fixture
def quick(monkeypatch):
    """Few resamples and empty pictures: what they hold is tested elsewhere."""
    monkeypatch.setitem(comparison.RESAMPLES, Task.CLASSIFICATION, 20)
    monkeypatch.setitem(comparison.PERMUTATIONS, Task.CLASSIFICATION, 20)
    monkeypatch.setattr(pages, "save_figure", lambda figure, path: path.write_bytes(b""))
    monkeypatch.setattr(pages, "inline_svg", lambda figure, number, words: "<svg></svg>")


@pytest.mark.usefixtures("quick")
def test_a_report_of_folders_is_whole_and_the_same_twice(tmp_path, capsys):
    plan = tile_plan(tmp_path, arms=["teacher_only", "independent", "kdml"], folds=[0, 1], seeds=[0, 1])
    missing = "independent/seed1-fold1"
    for name in ("one", "two"):
        write_results(plan, tmp_path / name, without=[missing])
        write_json(tmp_path / name / "plan.json", plan_content(plan))
    assert report_command(tmp_path / "one", speed=False) is ExitCode.SOME_FAILED
    assert "| KD + ML " in capsys.readouterr().out
    assert f"cells/edge/{missing}" in (tmp_path / "one" / "report.md").read_text()
    write_report(plan, tmp_path / "two", speed=False)
    files = {path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").glob("*.*")}
    assert {"results.parquet", "summary.csv", "comparisons.csv", "gains.csv", "diagnostics.csv"} <= files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.usefixtures("quick")
def test_seeds_of_folds_average_to_the_summary(tmp_path):
    plan = tile_plan(tmp_path, arms=["independent", "kdml"], folds=[0, 1], seeds=[0, 1])
    write_results(plan, tmp_path / "out")
    found = find(collect(plan, tmp_path / "out"), {})
    keys = ["arm", "role"]
    means = found.seeds.groupby(keys)["value"].mean()
    summary = found.summary[found.summary["metric"] == "auroc"].set_index(keys)["value"]
    assert len(summary) == 5
    for key, value in summary.items():
        assert means[key] == pytest.approx(value)


@pytest.mark.usefixtures("quick")
def test_a_whole_plan_has_nothing_to_report_as_missing(tmp_path):
    plan = tile_plan(tmp_path, arms=["kdml"])
    write_results(plan, tmp_path / "out")
    write_json(tmp_path / "out" / "plan.json", plan_content(plan))
    assert report_command(tmp_path / "out", speed=False) is ExitCode.OK
    assert "Missing trainings" not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("long", ["A" * 99, "_" + "y" * 98, "z\n" * 200 + r"$\frac{}{}$"], ids=["A", "_y", "lines"])
def test_long_names_leave_room_for_what_is_drawn(tmp_path, long):
    arms = ["x", long, f"{long}2"]
    words = {arm: arm for arm in arms}
    seeds = [{"arm": arm, "role": "ensemble", "seed": seed, "value": 0.5} for arm in arms for seed in range(2)]
    bins = [{"arm": arm, "predicted": 0.5, "observed": 0.5, "n": 5} for arm in arms]
    row = {"role": "ensemble", "value": 0.5, "low": 0.4, "high": 0.6}
    sweep = [row | {"setting": value, "others": other} for value in arms[1:] for other in ("", "_x", long)]
    drawn = [
        figures.draw_differences(pd.DataFrame([compared(arm, "ensemble", reference="x") for arm in arms[1:]]), words),
        figures.draw_seeds(pd.DataFrame(seeds), arms, words, "patient_auroc"),
        figures.draw_reliability(pd.DataFrame(bins), arms, words, long),
        figures.draw_sweep(pd.DataFrame(sweep), "learning_rate", "patient_auroc"),
    ]
    for number, figure in enumerate(drawn):
        save_figure(figure, tmp_path / f"{number}.png")  # what is squeezed to nothing gives a warning
