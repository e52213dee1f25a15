import pytest

from kdml_med.experiments import comparison, costs
from kdml_med.experiments.costs import known_latency, latency, measure_latency
from kdml_med.experiments.report.details import costs as costs_section
from kdml_med.experiments.report.writing import find
from kdml_med.experiments.results import collect
from kdml_med.keys import Task
from kdml_med.networks.registry import build_network
from tests.experiments.folders import CLASSIFIER, tile_plan, write_results

MILLISECONDS = {"teacher": 50.0, "student_0": 10.0, "student_1": 11.0, "ensemble": 21.0}


@pytest.fixture
def timed(monkeypatch):
    """Made-up times of networks that nobody has to load; the names of those that were timed, round by round."""
    rounds = []

    def measured(networks, **_):
        rounds.append(list(networks))
        return {name: MILLISECONDS[name] for name in [*networks, "ensemble"]}

    monkeypatch.setattr(costs, "load_network", lambda folder, name: None)
    monkeypatch.setattr(costs, "measure_latency", measured)
    return rounds


def test_networks_are_timed_with_the_ensemble_of_the_students():
    networks = {name: build_network("resnet10", num_classes=2) for name in ("teacher", "student_0", "student_1")}
    times = measure_latency(networks, task=Task.CLASSIFICATION, image_size=32, threads=1, repeats=1)
    assert list(times) == ["teacher", "student_0", "student_1", "ensemble"]
    assert all(value > 0 for value in times.values())


def test_latency_is_measured_once(tmp_path, monkeypatch):
    plan = tile_plan(tmp_path, arms=["kdml"])
    write_results(plan, tmp_path / "out")
    networks = []

    def measured(folder, name):
        networks.append(name)
        return build_network("resnet10", num_classes=2)

    monkeypatch.setattr(costs, "load_network", measured)
    first = latency(plan, tmp_path / "out", repeats=1)
    assert networks == ["teacher", "student_0", "student_1"]
    assert list(first["versions"]["edge"]["milliseconds"]) == [*networks, "ensemble"]
    assert latency(plan, tmp_path / "out", repeats=1) == first
    assert len(networks) == 3
    latency(plan, tmp_path / "out", repeats=1, again=True)
    assert len(networks) == 6


@pytest.mark.usefixtures("timed")
def test_costs_of_arms_with_other_networks_are_their_own(tmp_path, monkeypatch):
    monkeypatch.setitem(comparison.RESAMPLES, Task.CLASSIFICATION, 20)  # nothing here depends on them
    shorter = CLASSIFIER | {"last_block": 1}
    arms = [
        "teacher_only",
        "independent",
        "kdml",
        {"name": "other_teacher", "settings": {"teacher": shorter}},
        {"name": "other_student", "settings": {"students": [CLASSIFIER, shorter]}},
        {"name": "larger", "settings": {"image_size": 64}},
    ]
    plan = tile_plan(
        tmp_path,
        arms=arms,
        sweeps=[{"arm": "kdml", "number_of_students": [1, 3]}],
        settings={"teacher": CLASSIFIER | {"last_block": 3}, "students": [CLASSIFIER, CLASSIFIER]},
    )
    write_results(plan, tmp_path / "out")
    found = find(collect(plan, tmp_path / "out"), latency(plan, tmp_path / "out"))
    note, table = costs_section(found).parts[:2]
    names = {label: arm for arm, label in found.words.items()}
    shown = {}
    for row in table.rows:
        line = dict(zip(table.columns, row, strict=True))
        for label in line["arms"].replace(" and ", ", ").split(", "):
            shown.setdefault(names[label], {})[line["network"]] = (line["architecture"], line["ms per image"])
    teacher, student = (f"mobilenet_v2 (last block {number})" for number in (3, 2))
    students = {"student 0": (student, "10.0"), "student 1": (student, "11.0"), "ensemble": ("2 students", "21.0")}
    whole = {"teacher": (teacher, "50.0")} | students
    other = "mobilenet_v2 (last block 1)"
    assert shown == {
        "teacher_only": {"teacher": (teacher, "50.0")},
        "independent": students,
        "kdml": whole,
        "other_teacher": whole | {"teacher": (other, "–")},
        "other_student": whole | {"student 1": (other, "–"), "ensemble": ("2 students", "–")},
        "larger": {network: (architecture, "–") for network, (architecture, _) in whole.items()},
        # A student like one that was timed takes as long, and so does an ensemble of such a one alone.
        "kdml_number_of_students=1": {
            "teacher": (teacher, "50.0"),
            "student 0": (student, "10.0"),
            "ensemble": ("1 student", "10.0"),
        },
        "kdml_number_of_students=3": whole | {"student 2": (student, "10.0"), "ensemble": ("3 students", "–")},
    }
    assert "– stands where an arm's networks or images are not those that were timed." in note.text


def test_networks_are_timed_again_when_the_reference_brings_others(tmp_path, timed):
    settings = {"students": [CLASSIFIER] * 2}
    plan = tile_plan(tmp_path, arms=["ml", "kdml"], settings=settings)
    write_results(plan, tmp_path / "out", without=["kdml/seed0"])
    latency(plan, tmp_path / "out")
    write_results(plan, tmp_path / "out")
    for _ in range(2):
        latency(plan, tmp_path / "out")
    assert timed == [["student_0", "student_1"], ["teacher", "student_0", "student_1"]]


def test_a_speed_file_of_an_earlier_version_is_read_by_names():
    measured = {"image_size": [32, 32], "milliseconds": MILLISECONDS}
    networks = {"teacher": "resnet18", "student_0": "resnet10"}
    assert known_latency(measured, networks, (32, 32), "student_0") == 10
    assert known_latency(measured, networks, (64, 64), "student_0") is None
    assert known_latency(measured | {"networks": networks}, networks, (32, 32), "student_0") == 10
    assert known_latency({}, networks, (32, 32), "student_0") is None
