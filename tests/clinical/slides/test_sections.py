"""The report of a run on slides: its figures against other libraries, and what it says where figures are missing."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from kdml_med.clinical.slides import findings, judging, patients
from kdml_med.clinical.writing import write_report
from kdml_med.errors import InputError
from kdml_med.metrics.operating import Proportion
from kdml_med.report import pages
from kdml_med.splits import freeze_splits, make_splits
from kdml_med.storage.files import write_json, write_table
from kdml_med.storage.locks import sole_user
from kdml_med.storage.manifest import (
    FAILURES_FILE,
    MANIFEST_FILE,
    read_info,
    read_manifest,
    write_info,
    write_manifest,
)
from tests.clinical.answered import write_evaluation
from tests.clinical.studies import predictions_on, write_placed_dataset, write_study
from tests.synthetic_tiles import CLASSES


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals are checked where they are computed; here they only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "RESAMPLES", 50)
        patch.setattr(findings, "RESAMPLES_OF_GROUPS", 50)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_placed_dataset(tmp_path_factory.mktemp("placed") / "tiles")


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with test and external evaluations, its report and a table for subgroups beside it."""
    folder = write_study(tmp_path_factory.mktemp("study") / "run", dataset)
    other = predictions_on(dataset, "test", seed=5)
    other["patient_id"] = "X" + other["patient_id"]
    write_evaluation(folder / "evaluation_other", other, split="test")
    names = sorted({*predictions_on(dataset, "test")["patient_id"], *other["patient_id"]})
    table = pd.DataFrame({"patient": names, "sex": ["f" if int(name[-1]) % 3 else "m" for name in names]})
    table.to_csv(folder.parent / "table.csv", index=False)
    write_report(
        folder, external=[folder / "evaluation_other"], labels=[folder.parent / "table.csv"], by=["sex"],
        temperature=True,
    )  # fmt: skip
    return folder


def figures_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def text_of(run: Path) -> str:
    """What stands on the page, without style, script and drawings."""
    page = (run / "report.html").read_text()
    for tag in ("style", "script", "svg"):
        page = re.sub(rf"<{tag}.*?</{tag}>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def answers(run: Path, folder: str, network: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and mean probabilities by patient, without the code under test."""
    table = pd.read_parquet(run / folder / "predictions.parquet")
    groups = table[table["network"] == network].groupby("patient_id")
    return groups["label"].first().to_numpy(), groups["probability"].mean().to_numpy()


@pytest.mark.parametrize("folder", ["evaluation_test", "evaluation_other", "."])
@pytest.mark.parametrize("network", ["teacher", "student_1", "ensemble"])
def test_figures_are_those_of_scikit_learn_and_statsmodels(run: Path, folder: str, network: str) -> None:
    name = {".": "validation"}.get(folder, folder.removeprefix("evaluation_"))
    found = figures_of(run)["evaluations"][name]["networks"][network]
    labels, probabilities = answers(run, folder, network)
    assert found["roc"]["area"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-9)
    assert found["precision_recall"]["area"] == pytest.approx(average_precision_score(labels, probabilities), abs=1e-9)
    assert found["calibration"]["brier"] == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-9)
    val_labels, val = answers(run, ".", network)
    # The highest threshold that finds 95 % of the validation positives, by hand.
    positives = np.sort(val[val_labels == 1])[::-1]
    threshold = positives[math.ceil(0.95 * len(positives)) - 1]
    point = found["points"]["rule_out"]
    assert point["threshold"] == pytest.approx(threshold, abs=1e-12)
    tn, fp, fn, tp = confusion_matrix(labels, probabilities >= threshold - 1e-12, labels=[0, 1]).ravel()
    assert point["confusion"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    for share, done, of in (("sensitivity", tp, tp + fn), ("npv", tn, tn + fn), ("ruled_out", tn + fn, len(labels))):
        if of:
            assert point[share]["value"] == done / of
            limits = proportion_confint(done, of, method="wilson")
            assert (point[share]["low"], point[share]["high"]) == pytest.approx(limits, abs=1e-9)


def test_the_figures_stand_on_the_page(run: Path) -> None:
    text, found = text_of(run), figures_of(run)
    own = found["evaluations"]["test"]["networks"]["ensemble"]
    roc = own["roc"]
    assert f"Test split: AUROC {roc['area']:.3f} ({roc['area_low']:.3f}–{roc['area_high']:.3f})" in text
    point = own["points"]["rule_out"]["ruled_out"]
    assert f"ruled out {point['value']:.2f} ({point['low']:.2f}–{point['high']:.2f})" in text
    assert "Generated data" in text
    assert "Few patients" in text
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert len((run / "report.html").read_bytes()) < 10_000_000
    assert sorted(path.name for path in run.glob("report*")) == ["report.html", "report.json"]


def test_subgroups_are_judged_by_themselves(run: Path, dataset: Path) -> None:
    found = figures_of(run)["subgroups"]["test"]
    table = pd.read_parquet(run / "evaluation_test/predictions.parquet")
    own = table[table["network"] == "ensemble"].groupby("patient_id").agg({"label": "first", "probability": "mean"})
    expected = {
        "sex": np.where(own.index.str[-1].astype(int) % 3, "f", "m"),
        "site": np.where(own.index.str[-1].astype(int) < 5, "north", "south"),
    }
    for column, groups in expected.items():
        assert [group["name"] for group in found[column]] == sorted(set(groups))
        assert sum(group["n"] for group in found[column]) == len(own)
        for group in found[column]:
            part = own[groups == group["name"]]
            assert group["positives"] == part["label"].sum()
            if part["label"].nunique() == 2:
                assert group["auroc"][0] == pytest.approx(roc_auc_score(part["label"], part["probability"]), abs=1e-9)
            else:
                assert group["auroc"][0] is None
                assert group["why_undefined"] == "all patients are of one class"


def test_rules_stay_whatever_the_test_patients_answer(run: Path, dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    wild = predictions_on(dataset, "test", seed=9, noise=2)
    write_evaluation(other / "evaluation_test", wild, split="test")
    write_report(other)
    assert figures_of(other)["rules"] == figures_of(run)["rules"]
    assert figures_of(other)["evaluations"]["test"] != figures_of(run)["evaluations"]["test"]


HOSTILE = [
    "<script>alert(1)</script>", r"$\frac{}{}$", '=HYPERLINK("http://x","y")', "</svg><img src=x onerror=alert(1)>",
    "{{7*7}}", "_under", "مريض", "नमस्ते", "😀", "\u202eevil", "a" * 500, "' or \"1\"", "&amp;",
]  # fmt: skip


class _Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, set[str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name for name, _ in attributes}))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_of_patients_classes_sites_tables_and_folders_are_shown_as_text(tmp_path: Path) -> None:
    classes = ["<script>alert(0)</script>", r"$\frac{}{}$"]
    dataset = write_placed_dataset(tmp_path / "tiles")
    info, manifest = read_info(dataset), read_manifest(dataset)
    named = {name: HOSTILE[i // 2] + " 2" * (i % 2) for i, name in enumerate(sorted(manifest["patient_id"].unique()))}
    manifest["patient_id"] = manifest["patient_id"].map(named)
    manifest["label"] = manifest["label"].map(dict(zip(info.classes, classes, strict=True)))
    manifest["site"] = manifest["site"].map({"north": HOSTILE[0], "south": HOSTILE[1]})
    write_manifest(dataset / MANIFEST_FILE, pa.Table.from_pandas(manifest, preserve_index=False))
    write_table(dataset / FAILURES_FILE, pd.DataFrame({"input": HOSTILE, "reason": HOSTILE}))
    info.classes = classes
    write_info(dataset, info)
    freeze_splits(dataset, make_splits(manifest, classes=classes), mode="fractions", seed=0, force=True)
    run = write_study(tmp_path / "run <b>x", dataset)
    test = predictions_on(dataset, "test", seed=2)
    other = write_evaluation(run / "evaluation_<i>y", test, split="test", classes=classes)
    table = pd.DataFrame({"patient": named.values(), HOSTILE[0]: np.resize(HOSTILE[:4], len(named))})
    table.to_csv(tmp_path / "<u>z.csv", index=False)
    write_report(run, external=[other], labels=[tmp_path / "<u>z.csv"], by=[HOSTILE[0]])
    page = (run / "report.html").read_text()
    tags = _Tags(page)
    assert sum(tag == "script" for tag, _ in tags.found) == page.count("</script>") == 1, "that of the page itself"
    assert not {"b", "i", "u"} & {tag for tag, _ in tags.found}
    assert not [names for _, names in tags.found if any(name.startswith("on") for name in names)]
    for name in {*test["patient_id"], *classes, *HOSTILE}:
        assert " ".join(name.split()) in " ".join(tags.text.split()), name


def test_an_evaluation_that_was_interrupted_or_is_not_named_is_named(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    (other / "evaluation_test/metrics.json").unlink()
    write_report(other)
    assert f"{other / 'evaluation_test'} was interrupted, it has no metrics.json: evaluate again." in text_of(other)
    assert f"{other / 'evaluation_other'} is not on this page: name it with --external." in text_of(other)


def test_a_report_that_is_interrupted_leaves_the_earlier_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    other = shutil.copytree(run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in other.glob("report.*")}
    monkeypatch.setattr(pages, "inline_svg", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(other)
    assert {path.name: path.read_bytes() for path in other.glob("*report.*")} == before
    with sole_user(other), pytest.raises(InputError, match=r"another run is writing to .*run: wait for it\.$"):
        write_report(other)


@pytest.mark.parametrize("value", [[], [0.1], {}, "x", True, [0.1, "x"]])
@pytest.mark.parametrize(
    ("folder", "remedy"), [("evaluation_test", "Evaluate again"), (".", "the command of the training again")]
)
def test_figures_that_were_edited_are_refused(run: Path, tmp_path: Path, value: Any, folder: str, remedy: str) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    path = other / folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["networks"]["ensemble"]["patient"]["auroc_ci95"] = value
    write_json(path, metrics)
    with pytest.raises(InputError, match=rf"patient of ensemble is no figure.*{remedy}"):
        write_report(other)


def _one_class(test: pd.DataFrame) -> pd.DataFrame:
    return test[test["label"] == 1]


def _one_patient(test: pd.DataFrame) -> pd.DataFrame:
    return test[test["patient_id"] == test["patient_id"].iloc[0]]


def _no_labels(test: pd.DataFrame) -> pd.DataFrame:
    return test.assign(label=-1)


def _a_network_with_nan(test: pd.DataFrame) -> pd.DataFrame:
    return test.assign(probability=test["probability"].mask(test["network"] == "ensemble"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_one_class, "all patients are of one class"),
        (_one_patient, "all patients are of one class"),
        (_no_labels, "no patient has a label"),
        (_a_network_with_nan, "the network answers with something that is no number"),
    ],
)
def test_what_is_not_defined_is_a_dash_with_its_reason(
    run: Path, dataset: Path, tmp_path: Path, change: Any, reason: str
) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    changed = change(predictions_on(dataset, "test", seed=2))
    write_evaluation(other / "evaluation_test", changed, split="test")
    write_report(other)
    text = text_of(other)
    assert "Test split: AUROC –" in text
    assert f"Not everything is defined: {reason}." in text
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert figures_of(other)["evaluations"]["test"]["networks"]["ensemble"]["roc"]["area"] is None


@pytest.mark.parametrize("networks", [("teacher",), ("student_0",), ("student_0", "student_1", "ensemble")])
def test_a_run_may_lack_teacher_or_students(dataset: Path, tmp_path: Path, networks: tuple[str, ...]) -> None:
    other = write_study(tmp_path / "run", dataset, networks=networks)
    write_report(other, speed=False)
    assert set(figures_of(other)["evaluations"]["test"]["networks"]) == set(networks)


def test_without_test_patients_the_page_says_so(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(other / "evaluation_test")
    write_report(other)
    text = text_of(other)
    assert "Validation only. This run was not evaluated on test patients yet: all figures are of the patients" in text


def test_runs_evaluated_before_the_owner_of_crops_was_noted_have_one_word_for_it(tmp_path: Path) -> None:
    data = write_placed_dataset(tmp_path / "tiles")
    run = write_study(tmp_path / "run", data, level="slide")
    shutil.rmtree(run / "evaluation_test")
    own = predictions_on(data, "val", seed=2)
    how = {"unit": "patient", "units": 3, "resamples": 50}
    write_evaluation(run, own, split="val", level="slide", bootstrap=how)
    write_info(data, replace(read_info(data), owner="sequence"))
    write_report(run, speed=False)
    text = text_of(run)
    assert "This run was not evaluated on test sequences yet: all figures are of the sequences by which" in text
    assert "by resampling sequences." in text
    assert "Few sequences" in text
    assert not re.search(r"[Ff]ew patients|\d patients?\b|resampling patients|test patients", text)


def test_a_dataset_that_moved_is_said_and_can_be_named(run: Path, dataset: Path, tmp_path: Path) -> None:
    other, moved = shutil.copytree(run, tmp_path / "run"), shutil.copytree(dataset, tmp_path / "moved")
    settings = json.loads((run / "settings.json").read_text())
    write_json(other / "settings.json", settings | {"dataset_dir": str(tmp_path / "gone")})
    write_report(other)
    assert "which is not there: name its new place with --data" in text_of(other)
    assert "Test split: no pictures." in text_of(other)
    assert figures_of(other)["flow"] is None
    write_report(other, dataset_dir=moved)
    assert figures_of(other)["flow"] == figures_of(run)["flow"]
    stranger = write_placed_dataset(tmp_path / "stranger", patients=12)
    with pytest.raises(InputError, match=r"is not the dataset that .* was trained on"):
        write_report(other, dataset_dir=stranger)


def test_pictures_are_of_the_most_wrong_and_the_most_certain(run: Path) -> None:
    text = text_of(run)
    section = text[text.rindex("Most certain and most wrong") :]
    labels, probabilities = answers(run, "evaluation_test", "ensemble")
    threshold = figures_of(run)["rules"]["thresholds"]["ensemble"]["youden"]
    kinds = {
        f"missed {CLASSES[1]}, the lowest": np.sort(probabilities[(labels == 1) & (probabilities < threshold)])[:3],
        f"{CLASSES[1]} found, the highest": np.sort(probabilities[(labels == 1) & (probabilities >= threshold)])[
            :-4:-1
        ],
    }
    for title, expected in kinds.items():
        own = section[section.index(title) :]
        shown = re.findall(r"(?:MSI|MSS), probability ([0-9.]+)", own)[: len(expected)]
        assert shown == [f"{value:.3f}" for value in expected]
    assert (run / "report.html").read_text().count("data:image/jpeg;base64") >= 4


def test_of_several_slides_the_one_is_shown_that_speaks_for_what_the_threshold_calls_the_patient(
    tmp_path: Path,
) -> None:
    """Slides of 0.2 and 0.6 are 0.4 together: positive from a threshold of 0.3, below a half all the same."""
    data = write_placed_dataset(tmp_path / "tiles")
    test = predictions_on(data, "test")
    patient = test.loc[test["label"] == 1, "patient_id"].iloc[0]
    number, own = test.groupby(["network", "patient_id"]).cumcount(), test["patient_id"] == patient
    second = number % 2 == 1
    test["slide_id"] += np.where(own, np.where(second, "_b", "_a"), "")
    test["probability"] = np.where(own, np.where(second, 0.6, 0.2), 0.1)
    slides = pd.read_csv(data / "slides.csv")
    first = slides[slides["slide_id"] == test.loc[own, "slide_id"].iloc[0].removesuffix("_a")]
    parts = [first.assign(slide_id=first["slide_id"] + end) for end in ("_a", "_b")]
    write_table(data / "slides.csv", pd.concat([slides, *parts]))
    run = write_study(tmp_path / "run", data, test=test)
    validation = predictions_on(data, "val")
    validation["probability"] = np.where(validation["label"] == 1, 0.3, 0.1)
    write_evaluation(run, validation, split="val", classes=CLASSES)
    write_report(run)
    assert figures_of(run)["rules"]["thresholds"]["ensemble"]["youden"] == pytest.approx(0.3)
    text = text_of(run)
    shown = text[text.index(f"{CLASSES[1]} found, the highest") :]
    name = parts[1]["slide_id"].iloc[0]
    assert f"Patient {patient}, slide {name} (of 2 slides) {CLASSES[1]}, probability 0.400; 2 tiles" in shown


def test_tiles_without_positions_give_no_pictures(tmp_path: Path) -> None:
    dataset = write_placed_dataset(tmp_path / "tiles", placed=False)
    run = write_study(tmp_path / "run", dataset)
    write_report(run)
    assert "no pictures. The tiles were imported" in text_of(run)


def test_shards_that_are_gone_cost_pictures_and_nothing_else(run: Path, dataset: Path, tmp_path: Path) -> None:
    other, moved = shutil.copytree(run, tmp_path / "run"), shutil.copytree(dataset, tmp_path / "moved")
    shutil.rmtree(moved / "shards")
    write_report(other, dataset_dir=moved)
    assert "no pictures. tile" in text_of(other)
    assert figures_of(other)["evaluations"]["test"] == figures_of(run)["evaluations"]["test"] | {
        "networks": figures_of(other)["evaluations"]["test"]["networks"]
    }


def test_of_many_patients_those_furthest_from_the_truth_are_listed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(patients, "MOST_ROWS", 3)
    write_report(other)
    errors = []
    for folder in ("evaluation_test", "."):
        labels, probabilities = answers(run, folder, "ensemble")
        errors += list(np.abs(labels - probabilities))
    text = text_of(other)
    assert f"Of {len(errors)} rows, those 3 are shown" in text
    table = re.search(
        r"<table[^>]*>(?:(?!</table>).)*students differ by.*?</table>", (other / "report.html").read_text(), re.S
    )
    assert table is not None
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table[0].rpartition("<tbody")[2], re.S)
    assert len(rows) == 3
    shown = [re.sub("<[^>]*>", " ", row).split() for row in rows]
    found = [abs(float(row[-3]) - (row[3] == "MSI")) for row in shown]
    assert sorted(found, reverse=True) == pytest.approx(sorted(errors, reverse=True)[:3], abs=6e-4)


def _other_prevalence(other: pd.DataFrame) -> pd.DataFrame:
    names = sorted(other["patient_id"][other["label"] == 1].unique())
    return other[~other["patient_id"].isin(names[1:])]


def _no_positives(other: pd.DataFrame) -> pd.DataFrame:
    return other[other["label"] == 0]


def _some_unlabelled(other: pd.DataFrame) -> pd.DataFrame:
    return other.assign(label=other["label"].mask(other["patient_id"] == other["patient_id"].iloc[0], -1))


def _unknown_patients(other: pd.DataFrame) -> pd.DataFrame:
    return other.assign(patient_id=other["slide_id"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_prevalence, "(1 MSI)"),
        (_no_positives, "Not everything is defined: all patients are of one class."),
        (_some_unlabelled, "1 patient without a label left out"),
        (_unknown_patients, "External: other: AUROC 0."),
    ],
)
def test_any_external_cohort_is_judged_at_the_frozen_thresholds(
    run: Path, dataset: Path, tmp_path: Path, change: Any, said: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    other = predictions_on(dataset, "test", seed=5)
    for name in ("patient_id", "slide_id"):
        other[name] = "X" + other[name]
    write_evaluation(copy / "evaluation_other", change(other), split="test")
    write_report(copy, external=[copy / "evaluation_other"])
    text, found = text_of(copy), figures_of(copy)
    assert said in text
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert found["rules"]["thresholds"] == figures_of(run)["rules"]["thresholds"]
    own = change(other)[lambda table: (table["network"] == "ensemble") & (table["label"] >= 0)]
    means = own.groupby("patient_id").agg({"label": "first", "probability": "mean"})
    point = found["evaluations"]["other"]["networks"]["ensemble"]["points"]["rule_out"]
    called = means["probability"] >= point["threshold"] - 1e-12
    assert point["specificity"]["successes"] == (~called & (means["label"] == 0)).sum()
    assert (point["sensitivity"]["value"] is None) == (means["label"].sum() == 0)


def test_cohorts_with_the_same_ids_and_small_groups_are_cautioned(run: Path, dataset: Path, tmp_path: Path) -> None:
    assert "have ids of" not in text_of(run)
    assert "Fewer than 20 patients, whose intervals are unreliable and mostly too narrow: site north (" in text_of(run)
    copy = shutil.copytree(run, tmp_path / "run")
    write_evaluation(copy / "evaluation_other", predictions_on(dataset, "test", seed=5), split="test")
    write_report(copy, external=[copy / "evaluation_other"])
    first = predictions_on(dataset, "test")["patient_id"].iloc[0]
    assert f"patients of External: other have ids of Test split, first {first}." in text_of(copy)


def test_several_slides_of_a_patient_widen_the_intervals(tmp_path: Path) -> None:
    """The page says by whom intervals are, and the figures are those of the patients."""
    data = write_placed_dataset(tmp_path / "tiles")
    test = predictions_on(data, "test", seed=2)
    number = test.groupby(["network", "patient_id"]).cumcount()
    split = test.assign(slide_id=test["slide_id"] + "_" + (number % 2).astype(str))
    run = write_study(tmp_path / "run", data, level="slide")
    write_evaluation(run / "evaluation_test", split, split="test", level="slide")
    write_report(run)
    own = split[split["network"] == "ensemble"].groupby("slide_id").agg(
        {"label": "first", "probability": "mean", "patient_id": "first"}
    )  # fmt: skip
    point = figures_of(run)["evaluations"]["test"]["networks"]["ensemble"]["points"]["youden"]
    called = (own["probability"] >= point["threshold"]).to_numpy()
    truth, patients = own["label"].to_numpy() == 1, own["patient_id"].to_numpy()
    expected = Proportion.of_groups(~called[~truth], patients[~truth])
    assert [point["specificity"][name] for name in ("value", "low", "high")] == pytest.approx(
        [expected.value, expected.low, expected.high]
    )
    assert "slides of one patient are alike (Korn & Graubard 1998)" in text_of(run).replace("&amp;", "&")


def test_the_page_says_what_was_resampled_where_patients_are_not_known(tmp_path: Path) -> None:
    data = write_placed_dataset(tmp_path / "tiles", patients=12)
    run = write_study(tmp_path / "run", data, level="slide")
    for folder in (run, run / "evaluation_test"):
        content = json.loads((folder / "metrics.json").read_text())
        unit = {"unit": "slide", "units": 2, "resamples": 50}
        write_json(folder / "metrics.json", content | {"level": "slide", "bootstrap": unit})
    predictions = predictions_on(data, "test", seed=2)
    write_evaluation(run / "evaluation_test", predictions, split="test", level="slide", bootstrap=unit)
    write_evaluation(run, predictions_on(data, "val", seed=1), split="val", level="slide", bootstrap=unit)
    write_report(run, speed=False)
    text = text_of(run)
    assert "Intervals: 95 %, by resampling slides." in text
    assert "by resampling patients" not in text
    assert re.search(r"Test split: \d+ slides \(", text)
    assert ">patient<" not in (run / "report.html").read_text()  # above the ids


def test_slides_of_frames_or_sequences_are_not_said_to_be_of_patients(tmp_path: Path) -> None:
    """As crops of frames are, whose source names no patients."""
    data = write_placed_dataset(tmp_path / "tiles")
    write_info(data, replace(read_info(data), owner="frame"))
    run = write_study(tmp_path / "run", data, level="slide")
    for folder, split, unit in ((run, "val", "frame"), (run / "evaluation_test", "test", "frame"),
                                (run / "evaluation_other", "test", "sequence")):  # fmt: skip
        own = predictions_on(data, split, seed=2)
        number = own.groupby(["network", "patient_id"]).cumcount()
        own = own.assign(slide_id=own["slide_id"] + "_" + (number % 2).astype(str))
        how = {"unit": unit, "units": 3, "resamples": 50}
        write_evaluation(folder, own, split=split, level="slide", bootstrap=how)
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["patient,light", *(f"{name},dim" for name in sorted(set(own["patient_id"])))]))
    write_report(run, external=[run / "evaluation_other"], labels=[table], by=["light"], speed=False)
    text = text_of(run).replace("&amp;", "&")
    assert "Few frames or sequences" in text
    assert re.search(r"Test split: AUROC [^;]*; \d+ slides of \d+ frames \(", text)
    assert re.search(r"External: other: AUROC [^;]*; \d+ slides of \d+ sequences \(", text)
    assert "by resampling frames and sequences." in text
    assert "between frames or sequences because slides of one are alike (Obuchowski 1997)" in text
    assert "slides of one frame or sequence are alike (Korn & Graubard 1998)" in text
    assert re.search(r"slides of \d+ frames of the validation split", text)
    assert re.search(r"Fewer than 20 frames or sequences, whose", text)
    assert re.search(r"\d+ sequences of External: other have ids of Test split", text)
    assert not re.search(r"\d patients|these patients|each patient\b|one patient\b", text)
    assert ">patient<" not in (run / "report.html").read_text()  # above the ids


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"external": ["run"]}, "is a run of its own"),
        ({"external": ["nothing"]}, r"has no metrics\.json"),
        ({"external": ["run/evaluation_test"]}, "is on the page already"),
        ({"external": ["run/evaluation_other", "run/evaluation_other"]}, "is on the page already"),
        ({"labels": ["table.csv"]}, r"add --by COLUMN, one of \['patient', 'sex'\]"),
        ({"by": ["sex"]}, "needs a table with that column: name it with --labels"),
        ({"labels": ["table.csv"], "by": ["age"]}, "--by age: no such column"),
        ({"labels": ["strangers.csv"], "by": ["sex"]}, "for none of the evaluated patients"),
        ({"labels": ["empty.csv"], "by": ["sex"]}, r"--by sex: that column of empty\.csv is empty"),
        ({"labels": ["unnamed.csv"], "by": ["sex"]}, "no patient column recognised; rename it, or add"),
        ({"labels": ["twice.csv"], "by": ["sex"]}, r"row 3: patient 'P1' has sex 'm', but 'f' in .*, row 2"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(run: Path, wrong: dict[str, Any], message: str) -> None:
    (run.parent / "strangers.csv").write_text("patient,sex\nnobody,f\n")
    (run.parent / "empty.csv").write_text("patient,sex\nP1,\n")
    (run.parent / "unnamed.csv").write_text("who,sex\nP1,f\n")
    (run.parent / "twice.csv").write_text("patient,sex\nP1,f\nP1,m\n")
    before = (run / "report.html").read_bytes()
    places = {name: [run.parent / value for value in values] for name, values in wrong.items() if name != "by"}
    with pytest.raises(InputError, match=message) as caught:
        write_report(run, **places, by=wrong.get("by", ()))
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_bytes() == before
