"""Patients that are shared out to students."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdml_med.data.learners import deal_patients
from kdml_med.errors import InputError
from tests.examples import examples

CLASSES = ["MSS", "MSI"]


@st.composite
def cohorts(draw):
    """Patients with samples of one class or of both, at least as many of each class alone as there are students."""
    students = draw(st.integers(1, 4))
    kinds = [[0], [1]] * students + draw(st.lists(st.sampled_from([[0], [1], [0, 1]]), max_size=12))
    samples = [(f"P{number}", label) for number, kind in enumerate(kinds) for label in kind * draw(st.integers(1, 3))]
    return draw(st.permutations(samples)), students


@given(cohorts(), st.integers(0, 99))
@settings(max_examples=examples(60))
def test_each_patient_has_one_reader_and_each_reader_all_classes(cohort, seed):
    samples, students = cohort
    patients, labels = zip(*samples, strict=True)
    learners = deal_patients(patients, np.array(labels), CLASSES, students, seed=seed)
    of_patient = {}
    for patient, learner in zip(patients, learners.tolist(), strict=True):
        assert of_patient.setdefault(patient, learner) == learner
    counts = np.bincount(list(of_patient.values()), minlength=students)
    assert counts.max() - counts.min() <= 1
    for learner in range(students):
        assert {label for label, own in zip(labels, learners, strict=True) if own == learner} == {0, 1}
    # Neither the order of samples nor how many a patient has matters.
    order = np.random.default_rng(0).permutation(len(samples))
    again = deal_patients([patients[at] for at in order], np.array(labels)[order], CLASSES, students, seed=seed)
    assert again.tolist() == learners[order].tolist()


def test_another_seed_is_another_draw():
    patients, labels = [f"P{number}" for number in range(20)], np.arange(20) % 2
    draws = {tuple(deal_patients(patients, labels, CLASSES, 2, seed=seed)) for seed in range(5)}
    assert len(draws) == 5


def test_too_few_patients_of_a_class_are_refused():
    with pytest.raises(InputError, match="1 patient of class 'MSI': shared out to 2 students"):
        deal_patients(["A", "B", "C", "C"], np.array([0, 0, 1, 1]), CLASSES, 2, seed=0)
