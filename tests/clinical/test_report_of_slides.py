"""The report of a run on slides: its figures against other libraries, and what it says where figures are missing."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from kdml_med.clinical import findings, judging, patients
from kdml_med.clinical.writing import write_report
from kdml_med.errors import InputError
from kdml_med.storage.files import write_json
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


def test_names_are_shown_as_text(run: Path, dataset: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    test = predictions_on(dataset, "test", seed=2)
    first = test["patient_id"].iloc[0]
    test["patient_id"] = test["patient_id"].replace(first, "<script>alert(1)</script>")
    write_evaluation(other / "evaluation_test", test, split="test")
    external = write_evaluation(other / "evaluation_<b>x", test, split="test")
    write_report(other, external=[external])
    page = (other / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


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


def test_without_test_patients_the_page_says_so(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(other / "evaluation_test")
    write_report(other)
    assert "Validation only. This run was not evaluated on test patients yet" in text_of(other)


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
        ({"labels": ["twice.csv"], "by": ["sex"]}, r"row 3: patient 'P1' has sex 'm', but 'f' in .*, row 2"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(run: Path, wrong: dict[str, Any], message: str) -> None:
    (run.parent / "strangers.csv").write_text("patient,sex\nnobody,f\n")
    (run.parent / "twice.csv").write_text("patient,sex\nP1,f\nP1,m\n")
    before = (run / "report.html").read_bytes()
    places = {name: [run.parent / value for value in values] for name, values in wrong.items() if name != "by"}
    with pytest.raises(InputError, match=message) as caught:
        write_report(run, **places, by=wrong.get("by", ()))
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_bytes() == before
