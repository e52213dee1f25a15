"""How the figures of a report were made."""

from __future__ import annotations

from kdml_med.experiments.comparison import PERMUTATIONS, RESAMPLES
from kdml_med.experiments.report.content import Findings
from kdml_med.keys import Task
from kdml_med.report.document import Bullets, Section


def methods(found: Findings) -> Section:
    """What intervals and p values cover, and what they do not."""
    task = found.plan.task
    items = [
        "Pairs. All arms of a seed (and fold) share the split, the order of the samples, the augmentation and "
        "the random start of networks of the same name. The epoch of each training is the best one on its validation "
        "split.",
        f"Intervals of arms and differences are percentile intervals of {RESAMPLES[task]:,} bootstrap resamples. A "
        "resample draws units (patients, sequences or frames: the table of differences names them) with all their "
        "samples, the same ones for both arms, and seeds. With one seed an interval says nothing about another "
        "training; with few it is too narrow in that respect. An interval without width means that all resamples "
        "agree, not that the figure is certain. Intervals of single trainings resample units only.",
        "p values are those of two-sided permutation tests: if it made no difference which arm judged a unit, the "
        "answers of both arms could be swapped for that unit. All swaps are tried where there are not more than "
        f"{PERMUTATIONS[task]:,}, else as many random ones. Seeds are conditioned on: the p value speaks about these "
        "trainings on other patients, not about other trainings.",
        "Endpoints (whose figure, by which metric) are those of the plan, which is to be written before the trainings; "
        "whether it was, this report cannot tell. Holm–Bonferroni corrects for the number of arms that the reference "
        "is compared with, within a version, an evaluation and an endpoint, not for the number of these; further pairs "
        "of arms are corrected among themselves.",
        "A difference is called one only when its interval excludes 0 and its p value after Holm is below 0.05. No "
        "difference shown does not mean that there is none: the interval says how large it may be.",
        "What could be shown: the true difference that a paired t-test over the seeds finds with a chance of 80 %, at "
        "a level of 5 % divided by the number of arms, from the spread of the seeds' differences. It is about other "
        "trainings on the same test samples, and the spread of few seeds is itself uncertain.",
        "Students: mean of the figures of each student alone. Ensemble: their answers averaged, judged as one network. "
        "An arm that trains the teacher alone is compared by its teacher, with the ensemble and with the students.",
    ]
    if found.plan.folds:
        items.append(_folds_note(task))
        if any("dataset_dir" in evaluation for evaluation in found.plan.evaluations.values()):
            items.append(
                "On data that all folds are tested on, every fold counts as a seed; as folds share training data, "
                "intervals are somewhat too narrow."
            )
    items.append(
        "Multiply–accumulates count convolutions and linear layers of one forward pass; MB on disk (10^6 bytes) are "
        "those of the stored weights."
    )
    return Section("Methods", [Bullets(items)])


def _folds_note(task: Task) -> str:
    text = "Folds. Every sample is judged once per seed, by the networks that were not trained on it."
    if task is Task.DETECTION:
        return text
    return (
        f"{text} AUROC counts pairs of samples within folds only, because networks of different folds are calibrated "
        "differently."
    )
