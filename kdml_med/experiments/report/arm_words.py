"""Words for people: what a comparison calls its arms, their roles and diagnostics."""

from __future__ import annotations

from kdml_med.experiments.plan import Plan, named_arms

ARM_WORDS = {
    "teacher_only": "teacher alone",
    "independent": "labels only",
    "kd_offline": "offline KD",
    "kd_online": "online KD",
    "ml": "mutual learning",
    "kdml": "KD + ML",
    "kdml_offline": "offline KD + ML",
    "kd_strong": "strong online KD",
    "kd_offline_strong": "strong offline KD",
    "kdml_head_start": "KD + ML with a head start",
    "kdml_own_start": "KD + ML with own starts",
    "kdml_features": "KD + ML by features",
    "kdml_diverse": "diverse KD + ML",
}
"""Without commas, which stand between them in sentences."""
ROLE_WORDS = {"ensemble": "ensemble of the students", "students": "students, mean of each alone", "teacher": "teacher"}
"""In the order in which they are judged: the ensemble is what is used in the end."""

DIAGNOSTIC_WORDS = {
    "disagreement": "students differ",
    "error_correlation": "their errors correlate",
    "agreement_with_teacher": "students decide as the teacher",
    "brier": "Brier score",
    "ece": "calibration error",
}


def arm_words(plan: Plan) -> dict[str, str]:
    """What to call each arm of a plan; arms that the plan names itself keep their names."""
    words = {}
    for name, (_, settings) in named_arms(plan).items():
        words[name] = ARM_WORDS.get(name, name)
        swept = "_".join(f"{key}={value}" for key, value in settings.items())
        for like, label in ARM_WORDS.items() if swept else ():
            if name in (like, f"{like}_{swept}"):
                words[name] = f"{label} ({settings_words(settings)})"
    return words


def settings_words(settings: dict[str, object]) -> str:
    """Settings of an arm, such as "beta 0.5, gamma 2"."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())


def diagnostic_words(diagnostic: str) -> tuple[str, str]:
    """Name of a diagnostic, and what it was computed for each of, such as "tile"."""
    name, _, level = diagnostic.rpartition("_")
    return DIAGNOSTIC_WORDS.get(name, name.replace("_", " ")), level
