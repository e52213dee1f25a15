"""Made-up findings: what a report is written from, without any training."""

import itertools

import numpy as np
import pandas as pd

from kdml_med.experiments.plan import make_plan
from kdml_med.experiments.report.content import ArmNetworks, Evaluation, Findings

ARMS = ["teacher_only", "independent", "kd_offline", "kd_online", "ml", "kdml"]
SEEDS = [0, 1, 2]
SHORT = {"name": "mobilenet_v2", "last_block": 13}
SPECS = {"teacher": "mobilenet_v2", "student_0": SHORT, "student_1": SHORT}
TIMED = {
    "networks": SPECS,
    "image_size": [64, 64],
    "milliseconds": {"teacher": 9.1, "student_0": 4.2},
    "cpu_share": 1.0,
}
COSTS = {"teacher": (2_226_434, 58e6, 9.1e6), "student_0": (542_722, 30e6, 2.3e6), "student_1": (542_722, 30e6, 2.3e6)}


def compared(arm="ml", role="ensemble", difference=0.012, low=-0.02, high=0.045, p=0.41, **other):
    """One row of a comparison table; undecided unless told otherwise."""
    row = {
        "version": "edge", "evaluation": "test", "role": role, "metric": "auroc", "reference": "kdml", "arm": arm,
        "value_reference": 0.8, "value_arm": 0.8 - difference, "difference": difference, "low": low, "high": high,
        "p_value": p / 2, "p_holm": p, "unit": "patient", "units": 40, "seeds": 3,
        "permutations": 10_000, "exact": False, "pairs": 3, "seed_sd": 0.01, "detectable": 0.03,
    }  # fmt: skip
    return row | other


def made_up_findings(*, missing=(), synthetic=True, comparisons=None, **plan):
    """Findings of a plan of all arms with three seeds."""
    generator = np.random.default_rng(0)
    content = {
        "name": "Made-up findings", "bundle": "bundles/msi_kdml", "dataset_dir": "data/tiles", "versions": ["edge"],
        "arms": ARMS, "seeds": SEEDS,
    }  # fmt: skip
    plan = make_plan(content | plan)
    results = pd.DataFrame(_result_rows(generator)).astype({"seed": "Int64", "fold": "Int64", "n": "Int64"})
    if comparisons is None:
        comparisons = [
            compared("independent", role, 0.08, 0.03, 0.13, 0.004) for role in ("students", "ensemble")
        ] + [
            compared("kd_online", "ensemble", -0.05, -0.09, -0.02, 0.01),
            compared("ml", "ensemble"),
            compared("ml", "students", -0.01, -0.05, 0.04, 1.0),
            compared("teacher_only", "teacher", 0.0, -0.03, 0.03, 1.0),
        ]  # fmt: skip
    losses = [
        {"version": "edge", "arm": arm, "epoch": epoch, "term": term, "loss": share, "share": share}
        for arm, shares in {"independent": (1, 0, 0), "kd_online": (0.4, 0.6, 0), "kdml": (0.3, 0.5, 0.2)}.items()
        for epoch in range(1, 7)
        for term, share in zip(("labels", "teacher", "peers"), shares, strict=True)
        if share
    ]
    diagnostics = [
        {
            "version": "edge", "evaluation": "test", "arm": arm, "diagnostic": name, "teacher": "", "value": 0.2,
            "smallest": 0.1, "largest": 0.3, "runs": 3,
        }
        for name in ("disagreement_tile", "disagreement_patient", "error_correlation_patient")
        for arm in ("independent", "kdml")
    ]  # fmt: skip
    bins = [
        {"version": "edge", "arm": arm, "predicted": place / 5 + 0.1, "observed": place / 5, "n": 24}
        for arm in ("teacher_only", "kdml")
        for place in range(5)
    ]
    return Findings(
        plan=plan,
        trainings=len(ARMS) * len(SEEDS),
        missing=list(missing),
        results=results,
        summary=_summary(results),
        seeds=_seeds(results),
        comparisons=pd.DataFrame(comparisons),
        diagnostics=pd.DataFrame(diagnostics),
        losses=pd.DataFrame(losses),
        evaluations={"test": Evaluation("tiles", "test", ["MSS", "MSI"], "40 patients", synthetic)},
        networks={"edge": {arm: ArmNetworks({name: SPECS[name] for name in _networks(arm)}, (64, 64)) for arm in ARMS}},
        speed={"device": "a processor", "threads": 1, "versions": {"edge": TIMED}},
        reliability={"test": pd.DataFrame(bins)},
    )


def _networks(arm):
    with_teacher = [] if arm in ("independent", "ml") else ["teacher"]
    return with_teacher + ([] if arm == "teacher_only" else ["student_0", "student_1"])


def _result_rows(generator):
    for arm, seed in itertools.product(ARMS, SEEDS):
        place = {"version": "edge", "arm": arm, "seed": seed, "fold": None}
        for network in [*_networks(arm), *([] if arm == "teacher_only" else ["ensemble"])]:
            costs = COSTS.get(network) or tuple(2 * value for value in COSTS["student_0"])
            named = zip(("parameters", "multiply_accumulates", "bytes_on_disk", "steps"), (*costs, 48), strict=True)
            for metric, value in named:
                row = {"evaluation": "", "network": network, "level": "network", "metric": metric, "value": value}
                yield place | row | {"low": np.nan, "high": np.nan, "n": None}
            for metric, level in itertools.product(("auroc", "brier"), ("tile", "patient")):
                value = 0.7 + 0.02 * ARMS.index(arm) + 0.03 * generator.standard_normal()
                row = {"evaluation": "test", "network": network, "level": level, "metric": metric, "value": value}
                yield place | row | {"low": value - 0.08, "high": value + 0.05, "n": 40}


def _seeds(results):
    own = results[(results["level"] == "patient") & (results["metric"] == "auroc")]
    role = own["network"].where(~own["network"].str.startswith("student_"), "students")
    keys = ["version", "evaluation", "arm", "role", "seed"]
    return own.assign(role=role).groupby(keys, as_index=False)["value"].mean()


def _summary(results):
    own = results[results["level"] == "patient"]
    role = own["network"].where(~own["network"].str.startswith("student_"), "students")
    keys = ["version", "evaluation", "arm", "role", "metric"]
    table = own.assign(role=role).groupby(keys, as_index=False)[["value", "low", "high"]].mean()
    return table.assign(unit="patient", units=40, seeds=3, folds=1)
