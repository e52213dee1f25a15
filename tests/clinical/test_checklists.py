"""Checklists claim what the run knows, point at what the page has, and leave the rest to the author."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from kdml_med.clinical.checklists.facts import collect_facts
from kdml_med.clinical.checklists.items import STARD, TRIPOD_AI, Item
from kdml_med.clinical.checklists.sections import _known, checklist_sections
from kdml_med.clinical.provenance import provenance_sections
from kdml_med.clinical.study import read_study
from kdml_med.report.document import Paragraph, Section, Table
from tests.clinical.answered import predictions_of, write_evaluation, write_run
from tests.clinical.detectors import write_study
from tests.clinical.studies import write_placed_dataset
from tests.clinical.studies import write_study as write_slide_study

TITLES = (
    "Cohort flow",
    "Performance",
    "Operating points",
    "Confusion",
    "Subgroups",
    "Calibration",
    "Sensitivity by size",
)


@pytest.fixture(scope="module")
def detectors(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> Path:
    def patients(prefix):
        return {f"{prefix}{place}": (place % 2, [0.2 + 0.1 * place, 0.4]) for place in range(6)}

    run = write_run(tmp_path_factory.mktemp("run"), predictions_of(patients("V")))
    write_evaluation(run / "evaluation_test", predictions_of(patients("T")), split="test")
    return run


def shown(title) -> Section:
    """A section that has something to show."""
    return Section(title, [Table(["network"], [["teacher"]])])


def rows(facts) -> list[list[str]]:
    return [row for section in checklist_sections(facts) for part in section.parts[1:] for row in part.rows]


def numbers(count: int, parts: dict[int, str]) -> list[str]:
    return [f"{number}{letter}" for number in range(1, count + 1) for letter in parts.get(number, " ").strip() or [""]]


def test_every_item_of_the_guidelines_is_there_in_order():
    tripod = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab"}
    assert [item.number for item in TRIPOD_AI] == numbers(27, tripod | {27: "abc"})
    assert [item.number for item in STARD] == numbers(30, {10: "ab", 12: "ab", 13: "ab", 21: "ab"})


def test_every_item_leaves_something_to_the_author_to_write_or_to_check():
    assert all(item.author.endswith(".") and item.asks and not item.asks.endswith(".") for item in (*TRIPOD_AI, *STARD))


def test_without_facts_everything_is_left_to_the_author():
    assert {row[2] for row in rows({})} == {"–"}
    texts = [section.parts[0].text for section in checklist_sections({})]
    assert all("For 0 of " in text for text in texts)


@pytest.mark.parametrize("which", ["detectors", "classifiers"])
def test_facts_are_sentences_that_some_item_uses(which, request):
    study = read_study(request.getfixturevalue(which))
    facts = collect_facts(study, [shown(title) for title in TITLES])
    used = {name for item in (*TRIPOD_AI, *STARD) for name in item.facts}
    assert set(facts) <= used
    assert all(text.endswith(".") and text[0] == text[0].upper() for text in facts.values()), facts
    assert not any(re.search(r"\b(None|nan)\b", text) for text in facts.values()), facts


def test_every_fact_that_an_item_names_can_be_known(detectors, classifiers):
    titles = [shown(title) for title in (*TITLES, "External cohorts")]
    known = set().union(*(collect_facts(read_study(run), titles) for run in (detectors, classifiers)))
    named = {name for item in (*TRIPOD_AI, *STARD) for name in item.facts}
    # These need sites in the manifest, an external evaluation, generated data, or options of tiling.
    assert named - known <= {"centres", "difference", "cautions", "quality", "centres_differ"}


def test_facts_point_only_at_sections_of_the_page(detectors):
    study = read_study(detectors)
    page = provenance_sections(study)
    facts = collect_facts(study, page)
    assert "performance" not in facts
    pointed = set(re.findall("“([^”]+)”", " ".join(text for name, text in facts.items() if "See" in text)))
    assert "Provenance" in pointed
    assert pointed <= {"Provenance", "table", "anchors", "mean"}


def test_sections_without_a_table_or_about_nobody_are_no_evidence(classifiers):
    study = read_study(classifiers)
    empty = Section("Subgroups", [Paragraph("None were asked for.")])
    facts = collect_facts(study, [empty, shown("External cohorts"), shown("Performance")])
    assert not {"centres_differ", "fairness", "variability"} & set(facts)
    assert facts["measures"] == "Shown: “Performance”."


def test_a_warning_of_few_patients_is_a_limitation(detectors):
    few = Section("Few patients", [Paragraph("Only 3.")], banner=True)
    assert collect_facts(read_study(detectors), [few])["cautions"] == "“Few patients”."


def test_what_the_students_learned_from_is_what_the_weights_of_the_losses_say(tmp_path):
    facts = collect_facts(read_study(write_study(tmp_path / "a")), [])
    assert "the students learned from labels, the teacher and each other" in facts["model"]
    facts = collect_facts(read_study(write_study(tmp_path / "b", knobs={"beta": 0.0, "gamma": 0})), [])
    assert "the students learned from labels." in facts["model"]


def test_counts_are_those_of_the_run(detectors, classifiers):
    assert collect_facts(read_study(detectors), [])["counts"] == (
        "Training 1 patient; validation 2; test split 12 frames with 9 boxes."
    )
    assert collect_facts(read_study(classifiers), [])["counts"].endswith("test split 6 patients, 3 MSI.")


@pytest.mark.parametrize("level", ["patient", "sequence", "frame"])
def test_nothing_is_claimed_of_patients_who_are_not_known(detectors, level):
    study = read_study(detectors)
    facts = collect_facts(dataclasses.replace(study, dataset=known_by(study.dataset, level)), [])
    assert f"no {level} is in two of them, and evaluation refuses {level}s that training saw" in facts["partition"]
    assert ("patients are not known" in facts["partition"]) == (level != "patient")
    assert facts["counts"].startswith(f"Training 1 {level};")
    # Without the dataset, what was resampled tells.
    study.validation.metrics["bootstrap"]["unit"] = level
    assert f"no {level} is in two" in collect_facts(dataclasses.replace(study, dataset=None), [])["partition"]


def known_by(dataset, level):
    return dataclasses.replace(dataset, info=dataclasses.replace(dataset.info, label_level=level))


def test_slides_of_unknown_patients_are_not_called_patients(tmp_path):
    data = write_placed_dataset(tmp_path / "tiles", patients=12)
    study = read_study(write_slide_study(tmp_path / "run", data))
    assert "no patient is in two of them" in collect_facts(study, [])["partition"]
    alone = study.dataset.manifest.assign(patient_id=study.dataset.manifest["slide_id"])
    facts = collect_facts(dataclasses.replace(study, dataset=dataclasses.replace(study.dataset, manifest=alone)), [])
    assert "no slide is in two of them" in facts["partition"]
    assert "patients are not known, so that one may be in two of them." in facts["partition"]


def test_only_thresholds_that_were_chosen_are_said_to_be(detectors):
    study = read_study(detectors)
    networks = study.validation.metrics["networks"]
    assert "the score with the best F1." in collect_facts(study, [])["thresholds"]
    networks["teacher"]["recall"] = 0.0
    assert collect_facts(study, [])["thresholds"].endswith(
        "the score with the best F1; of teacher, for which none could be chosen, a score of 0.5."
    )
    for figures in networks.values():
        figures["recall"] = None
    assert collect_facts(study, [])["thresholds"] == "The validation split could choose none: a score of 0.5."


def test_generated_data_are_a_limitation(classifiers, detectors):
    assert "generated" in collect_facts(read_study(classifiers), [])["cautions"]
    assert "cautions" not in collect_facts(read_study(detectors), [])


def test_checklists_are_folded_tables_with_a_row_for_each_item():
    sections = checklist_sections({"aim": "A model was made."})
    assert [section.title for section in sections] == ["TRIPOD+AI checklist", "STARD checklist"]
    for section, items in zip(sections, (TRIPOD_AI, STARD), strict=True):
        table = section.parts[1]
        assert section.folded
        assert isinstance(table, Table)
        assert [row[0] for row in table.rows] == [item.number for item in items]
    assert [row[2] for row in rows({"aim": "A model was made."}) if row[2] != "–"] == ["A model was made."] * 2


def test_facts_of_an_item_stand_behind_each_other():
    item = Item("1", "asks", "author.", ("one", "two", "three"))
    assert _known(item, {"one": "A.", "three": "C."}) == "A. C."
