"""Where the figures come from: versions, hashes, seeds, commands and settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kdml_med.bundle.settings import knobs_of, known_default
from kdml_med.clinical.study import Evaluation, Study
from kdml_med.errors import InputError
from kdml_med.keys import network_order
from kdml_med.networks.published import weights_in_words
from kdml_med.report.document import Code, Paragraph, Part, Section, Table
from kdml_med.report.wording import network_words
from kdml_med.runs import checkpoint_path, hash_checkpoints

TITLE = "Provenance"
SETTINGS_TITLE = "All settings"
_UNKNOWN = "–"
_EARLIER = "The command was not noted: an earlier version made this."


def provenance_sections(study: Study) -> list[Section]:
    """What made the figures, the settings that differ from their defaults, and, folded, all of them."""
    hashes, missing = _hashes(study)
    parts: list[Part] = [
        Table(["", ""], _made_by(study), "Training", names=2),
        *_commands(study.settings.get("made_by") or {}),
        *(part for one in study.judged for part in _evaluation(one)),
    ]
    if hashes:
        rows = [
            [network_words(name), str(checkpoint_path(study.folder, name).relative_to(study.folder)), digest]
            for name, digest in sorted(hashes.items(), key=lambda pair: network_order(pair[0]))
        ]
        parts.append(Table(["network", "file", "SHA-256"], rows, "Weights, as they are now", names=3))
    else:
        parts.append(Paragraph(missing, "Weights:"))
    differing = _differing(study)
    columns, title = ["setting", "value", "default", "meaning"], "Settings that differ from their defaults"
    parts.append(
        Table(columns, differing, title, names=4)
        if differing
        else Paragraph("Every setting of the training has its default.")
    )
    every = [[name, _shown(value)] for name, value in sorted(study.knobs.items())]
    return [Section(TITLE, parts), Section(SETTINGS_TITLE, [Table(["setting", "value"], every, names=2)], folded=True)]


def _hashes(study: Study) -> tuple[dict[str, str], str]:
    """SHA-256 of the weights of each network as they are now; or none, and why."""
    try:
        return hash_checkpoints(study.folder, study.description.names), ""
    except InputError as error:
        return {}, str(error)


def _made_by(study: Study) -> list[list[str]]:
    """What trained, on what."""
    made_by: Mapping[str, Any] = study.settings.get("made_by") or {}
    dataset: Mapping[str, Any] = study.settings.get("dataset") or {}
    splits: Mapping[str, Any] = dataset.get("splits") or {}
    rows = [
        ["versions", _versions(made_by.get("versions")) or f"kdml_med {study.description.kdml_med}"],
        ["seed", _shown(study.knobs.get("seed", _UNKNOWN))],
        ["device", _shown(study.knobs.get("device", _UNKNOWN))],
        *_initial_weights(study.settings.get("initial_weights") or {}),
        ["dataset", _shown(study.settings.get("dataset_dir", _UNKNOWN))],
        ["its manifest, SHA-256", _shown(dataset.get("manifest_sha256") or _UNKNOWN)],
        ["its splits, SHA-256", _shown(splits.get("sha256") or _UNKNOWN)],
        ["how they were made", _splits_words(splits)],
    ]
    if study.dataset is not None:
        info = study.dataset.info
        rows += [
            ["the dataset was made by", _versions(info.made_by) or _UNKNOWN],
            ["with options", ", ".join(f"{name} {_shown(value)}" for name, value in info.options.items()) or _UNKNOWN],
        ]
    return rows


def _initial_weights(described: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [f"initial weights of {network_words(name)}", weights_in_words(described[name])]
        for name in sorted(described, key=network_order)
    ]


def _splits_words(splits: Mapping[str, Any]) -> str:
    if not splits.get("mode"):
        return _UNKNOWN
    seed = "" if splits.get("seed") is None else f", seed {splits['seed']}"
    return f"mode “{splits['mode']}”{seed}"


def _commands(made_by: Mapping[str, Any]) -> list[Part]:
    """Command lines as they can be typed again: of the start, and of those that went on."""
    later = [one.get("command") for one in made_by.get("continued") or []]
    lines = [str(line) for line in (made_by.get("command"), *later) if line]
    return [Code("\n".join(lines))] if lines else [Paragraph(_EARLIER)]


def _evaluation(evaluation: Evaluation) -> list[Part]:
    """What evaluated, on what."""
    record = evaluation.record
    if not record:
        return [Paragraph(f"Split {evaluation.split}. {_EARLIER}", f"{evaluation.title}.")]
    identity: Mapping[str, Any] = record.get("dataset") or {}
    rows = [
        ["versions", _versions(record.get("versions")) or _UNKNOWN],
        ["split", evaluation.split],
        ["dataset", _shown(record.get("dataset_dir", _UNKNOWN))],
        ["its manifest, SHA-256", _shown(identity.get("manifest_sha256") or _UNKNOWN)],
        ["its splits, SHA-256", _shown((identity.get("splits") or {}).get("sha256") or _UNKNOWN)],
    ]
    return [Table(["", ""], rows, evaluation.title, names=2), *_commands(record)]


def _versions(found: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) if isinstance(found, Mapping) else ""


def _differing(study: Study) -> list[list[str]]:
    """Settings of the training whose value is not the default, with both."""
    task = study.description.task
    help_of = {knob.name: knob.help for knob in knobs_of(task, "train")}
    worked_out = {"device", "use_teacher"}  # which have no fixed default
    return [
        [name, _shown(value), _shown(known_default(task, name)), _plain(help_of.get(name, ""))]
        for name, value in sorted(study.knobs.items())
        if name not in worked_out and value != known_default(task, name)
    ]


def _shown(value: Any) -> str:
    """A value as people write it: numbers and words as they are, others as JSON."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(markdown: str) -> str:
    """One line of the settings' Markdown without its links and code marks."""
    return re.sub(r"\[([^][]*)\]\([^()]*\)", r"\1", markdown.replace("`", ""))
