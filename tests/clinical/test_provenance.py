"""Where figures come from: what a run noted, and what can be computed from its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kdml_med.bundle.knobs import KNOBS
from kdml_med.bundle.settings import known_default
from kdml_med.clinical.provenance import SETTINGS_TITLE, _plain, provenance_sections
from kdml_med.clinical.study import read_study
from kdml_med.errors import InputError
from kdml_med.keys import Task
from kdml_med.report.document import Code, Paragraph, Table
from kdml_med.runs import SETTINGS_FILE
from kdml_med.storage.files import write_json
from tests.clinical.detectors import write_study


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run; its settings are those of the tests that read it."""
    return write_study(tmp_path_factory.mktemp("study"), knobs={"temperature": 2.0, "learning_rate": 0.001})


def change(run: Path, **content) -> None:
    path = run / SETTINGS_FILE
    write_json(path, json.loads(path.read_text()) | content)


def tables(run: Path) -> dict[str, Table]:
    sections = provenance_sections(read_study(run))
    return {part.title: part for section in sections for part in section.parts if isinstance(part, Table)}


def words(run: Path) -> str:
    parts = [part for section in provenance_sections(read_study(run)) for part in section.parts]
    return "\n".join(part.text for part in parts if isinstance(part, Paragraph | Code))


def test_weights_are_known_by_the_hash_of_their_files(written):
    rows = tables(written)["Weights, as they are now"].rows
    assert [row[0] for row in rows] == ["teacher", "student 0", "student 1"]
    for _, file, digest in rows:
        assert digest == hashlib.sha256((written / file).read_bytes()).hexdigest()


def test_settings_that_differ_come_with_their_default_and_all_are_folded_away(written):
    differing = {row[0]: row[1:3] for row in tables(written)["Settings that differ from their defaults"].rows}
    assert differing == {"temperature": ["2.0", "4.0"], "seed": ["3", "0"], "max_epochs": ["2", "11"]}
    every = provenance_sections(read_study(written))[-1]
    assert (every.title, every.folded) == (SETTINGS_TITLE, True)
    assert [row[0] for row in every.parts[0].rows] == sorted(
        ["seed", "max_epochs", "alpha", "beta", "gamma", "balance", "temperature", "learning_rate"]
    )


def test_a_run_with_defaults_says_so(tmp_path):
    knobs = {name: known_default(Task.DETECTION, name) for name in ("seed", "max_epochs")}
    run = write_study(tmp_path, knobs=knobs)
    assert "Every setting of the training has its default." in words(run)


def test_weights_that_networks_started_from_are_named_with_their_origin(tmp_path):
    run = write_study(tmp_path)
    own = {"file": "own.pt", "sha256": "ab12"}
    package = {"published": "ImageNet weights of a network", "package": "p", "licence": "MIT"}
    package |= {"imagenet_top1_percent": 75.1}
    change(run, initial_weights={"student_0": own, "teacher": own | package})
    rows = [row for row in tables(run)["Training"].rows if row[0].startswith("initial weights")]
    assert rows == [
        [
            "initial weights of teacher",
            "own.pt (ImageNet weights of a network, package p, MIT, top-1 75.1 % by their authors; SHA-256 ab12)",
        ],
        ["initial weights of student 0", "own.pt (SHA-256 ab12)"],
    ]


def test_commands_and_versions_are_shown_as_they_were_noted(tmp_path):
    run = write_study(tmp_path)
    assert "an earlier version made this" in words(run)
    first, later = "kdml-med train 'my data' --run r", "kdml-med train 'my data' --run r --max-epochs 9"
    change(run, made_by={"command": first, "versions": {"torch": "2.1"}, "continued": [{"command": later}]})
    dataset = json.loads((run / SETTINGS_FILE).read_text())["dataset"]
    write_json(run / "evaluation_test" / "evaluation.json", {
        "command": "kdml-med evaluate r", "versions": {"torch": "2.2"}, "dataset_dir": "/data", "split": "test",
        "dataset": dataset,
    })  # fmt: skip
    said = words(run)
    assert f"{first}\n{later}" in said
    assert "kdml-med evaluate r" in said
    assert "an earlier version" not in said
    found = tables(run)
    assert ["versions", "torch 2.1"] in found["Training"].rows
    assert ["its manifest, SHA-256", dataset["manifest_sha256"]] in found["Test split"].rows
    assert ["versions", "torch 2.2"] in found["Test split"].rows


def test_the_dataset_is_known_by_its_hashes(written):
    rows = dict(tables(written)["Training"].rows)
    data = written.parent / "data"
    assert rows["its manifest, SHA-256"] == hashlib.sha256((data / "manifest.parquet").read_bytes()).hexdigest()
    assert rows["its splits, SHA-256"] == hashlib.sha256((data / "splits.csv").read_bytes()).hexdigest()


def test_an_evaluation_of_other_weights_is_refused(tmp_path):
    run = write_study(tmp_path)
    path = run / "evaluation_test" / "evaluation.json"
    own = {name: hashlib.sha256((run / f"checkpoints/{name}.pt").read_bytes()).hexdigest() for name in ("teacher",)}
    write_json(path, {"weights": own})
    assert words(run)
    write_json(path, {"weights": own | {"student_1": "0" * 64}})
    with pytest.raises(InputError, match=r"evaluation_test was evaluated with other weights of student_1.*again\."):
        words(run)
    (run / "checkpoints/student_1.pt").unlink()  # moved away to save space: there is nothing to compare
    assert words(run)


def test_missing_weights_are_said(tmp_path):
    run = write_study(tmp_path)
    (run / "checkpoints/student_0.pt").unlink()
    assert "student_0.pt" in words(run)
    assert "Weights, as they are now" not in tables(run)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_the_help_of_every_setting_is_read_without_markdown(knob):
    text = _plain(knob.help)
    assert "](" not in text
    assert "`" not in text


def test_the_words_of_a_link_stay():
    assert _plain("`a` in [the `list`](x.md#y), [b](z)") == "a in the list, b"
