"""What a run can say about the items of reporting guidelines: its data, models, thresholds and sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kdml_med.clinical.study import DatasetContent, Evaluation, Study
from kdml_med.keys import NetworkName, Task
from kdml_med.metrics.detection import DEFAULT_THRESHOLD
from kdml_med.networks.registry import architecture_words
from kdml_med.report.document import Picture, Section, Table
from kdml_med.report.wording import listed, network_words
from kdml_med.runs import networks_by_default
from kdml_med.storage.manifest import owner_word
from kdml_med.words import counted

_TOPICS: dict[str, tuple[str, ...]] = {
    "flow": ("flow",),
    "performance": ("performance", "froc", "roc", "found"),
    "operating": ("operating", "threshold"),
    "crosstab": ("confusion", "operating"),
    "subgroups": ("subgroup",),
    "sizes": ("by size",),
    "calibration": ("calibration", "reliab"),
    "decision": ("decision",),
    "external": ("external",),
    "provenance": ("provenance",),
}
"""Words that the titles of sections on a topic have, in lower case."""
_MEASURES = ("performance", "operating", "calibration", "decision", "subgroups", "sizes", "external")
_MOST_WORDS = 12


def collect_facts(study: Study, sections: Sequence[Section]) -> dict[str, str]:
    """Sentences by the names that ``kdml_med.clinical.checklists.items`` uses; absent where nothing is known.

    Args:
        study: what is known of the run.
        sections: of the page, which the sentences refer to where they hold a table or a picture.
    """
    shown = [section for section in sections if any(isinstance(part, Table | Picture) for part in section.parts)]
    places = {topic: _titles(words, shown) for topic, words in _TOPICS.items()}
    if not any(_is_external(one) for one in study.judged):
        places["external"] = []  # a section that says so is none about them
    elif not places["external"]:
        places["external"] = places["operating"]  # where detectors have all frames beside each other
    facts = {name: make(study) for name, make in _FACTS.items()}
    facts |= _of_sections(places)
    few = _titles(("few ",), [section for section in sections if section.banner])
    facts["cautions"] = " ".join(filter(None, [f"{_quoted(few)}." if few else "", facts["cautions"]]))
    pointed = {"data": "provenance", "preparation": "provenance", "weights": "provenance", "missing": "flow"}
    pointed |= {"counts": "flow", "thresholds": "operating", "partition": "provenance", "model": "provenance"}
    for name, topic in pointed.items():
        if facts.get(name) and places[topic]:
            facts[name] += f" See {_quoted(places[topic])}."
    return {name: text for name, text in facts.items() if text}


def _titles(words: tuple[str, ...], sections: Sequence[Section]) -> list[str]:
    return [section.title for section in sections if any(word in section.title.lower() for word in words)]


def _quoted(titles: Sequence[str]) -> str:
    return listed([f"“{title}”" for title in titles])


def _of_sections(places: dict[str, list[str]]) -> dict[str, str]:
    """What stands in sections of the page."""
    found = {name: f"{_quoted(places[name])}." if places[name] else "" for name in ("flow", "performance", "crosstab")}
    measures = list(dict.fromkeys(title for topic in _MEASURES for title in places[topic]))
    found["measures"] = f"Shown: {_quoted(measures)}." if measures else ""
    sizes, groups, external = places["sizes"], places["subgroups"], places["external"]
    found["severity"] = f"Sizes of the annotated polyps: {_quoted(sizes)}." if sizes else ""
    found["centres_differ"] = f"Other datasets at the same thresholds: {_quoted(external)}." if external else ""
    found["fairness"] = f"{_quoted(groups)}, as far as they are groups of people." if groups else ""
    varied = list(dict.fromkeys([*groups, *sizes, *external]))
    found["variability"] = f"{_quoted(varied)}." if varied else ""
    return found


def _aim(study: Study) -> str:
    judged = [f"{one.title[:1].lower()}{one.title[1:]}" for one in study.judged]
    where = f"evaluated: {listed(judged)}" if judged else "not evaluated beyond its validation split"
    negative, positive = study.description.classes
    what = "finds polyps" if study.description.task is Task.DETECTION else f"tells {positive} from {negative}"
    return f"A model that {what} was developed here, and {where}."


def _data(study: Study) -> str:
    known = study.settings.get("dataset", {}).get("manifest_sha256")
    parts = [f"Training data: manifest with SHA-256 {known[:12]}…"] if known else []
    parts += [f"{one.title}: {one.dataset.folder.name}" for one in study.judged if one.dataset and _is_external(one)]
    return f"{'; '.join(parts)}." if parts else ""


def _is_external(evaluation: Evaluation) -> bool:
    return evaluation.role == "external"


def _centres(study: Study) -> str:
    """Sites that the manifests name."""
    parts = []
    for name, dataset in _datasets(study):
        sites = dataset.manifest["site"].dropna().nunique()
        if sites:
            parts.append(f"{name}: {counted(int(sites), 'site')} named")
    return f"{'; '.join(parts)}." if parts else ""


def _datasets(study: Study) -> list[tuple[str, DatasetContent]]:
    """Datasets that can still be read, each once."""
    found = [("Training and test data", study.dataset)] if study.dataset else []
    return found + [(one.title, one.dataset) for one in study.judged if one.dataset and _is_external(one)]


def _preparation(study: Study) -> str:
    run = study.description
    if run.task is Task.DETECTION:
        size = f"Frames stored with a longest side of {run.frame_size_px} px" if run.frame_size_px else "Frames"
        return f"{size}; {_options(run.frame_options)}." if run.frame_options else f"{size}."
    size = f"Tiles of {run.tile_size_px} px" if run.tile_size_px else "Tiles"
    scale = f" at {run.mpp:g} µm per pixel" if run.mpp else ""
    options = f"; {_options(run.tile_options)}" if run.tile_options else ""
    return f"{size}{scale}; stain normalisation: {run.stain}{options}."


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items())


def _missing(study: Study) -> str:
    parts = []
    for name, dataset in _datasets(study):
        unlabelled = int(dataset.manifest["label"].isna().sum())
        row = dataset.info.kind.removesuffix("s")
        left_out = counted(len(dataset.failures), "input") if len(dataset.failures) else "no input"
        unknown = f"{counted(unlabelled, row)} unlabelled"
        parts.append(f"{name}: {left_out} left out by preparation, wholly or in part, {unknown}")
    return f"{'; '.join(parts)}." if parts else ""


def _outcome(study: Study) -> str:
    classes = " and ".join(study.description.classes)
    if study.description.task is Task.DETECTION:
        return f"Frames are {classes}; polyps are annotated as boxes. A box is found at an IoU of at least 0.5."
    dataset = study.dataset
    table = (dataset.info.labels or {}).get("table") if dataset else None
    source = f", read from {table}" if table else ""
    return f"Classes {classes}, one for each {study.description.level}{source}."


def _predictors(study: Study) -> str:
    what = "Colonoscopy frames" if study.description.task is Task.DETECTION else "H&E tiles"
    return f"{what}; no other predictor enters the model."


def _input(study: Study) -> str:
    size = study.description.image_size
    shown = f"{size[0]} × {size[1]}" if isinstance(size, list) else f"{size} × {size}"
    return f"Scaled to {shown} px and normalised; varied at random in training only."


def _counts(study: Study) -> str:
    seen = study.description.seen_patients
    parts = [f"training {counted(len(seen['train']), _owner(study))}", f"validation {len(seen['val'])}"]
    positive = study.description.classes[-1]
    for one in study.judged:
        some: dict[str, Any] = next(iter(one.metrics["networks"].values()), {})
        if study.description.task is Task.DETECTION:
            number, boxes = some.get("n_frames"), some.get("n_boxes")
            parts += [f"{one.title.lower()} {number:,} frames with {boxes:,} boxes"] if number is not None else []
        else:
            level = one.metrics.get("level", "patient")
            group = some.get(level, {})
            if group.get("n") is not None:
                parts.append(f"{one.title.lower()} {counted(group['n'], level)}, {group['positives']} {positive}")
    return f"{'; '.join(parts)[:1].upper()}{'; '.join(parts)[1:]}."


def _owner(study: Study) -> str:
    """What has the ids of patients: "patient", or what stands for patients where they are not known."""
    if study.dataset is None:
        return study.validation.unit
    if study.description.task is Task.DETECTION:
        return study.dataset.info.label_level
    return owner_word(study.dataset.manifest, study.dataset.info)


def _partition(study: Study) -> str:
    splits = study.settings.get("dataset", {}).get("splits") or {}
    mode = splits.get("mode")
    made = f"Splits of mode “{mode}”" + (f", seed {splits['seed']}" if splits.get("seed") is not None else "")
    fold = f", test fold {study.description.fold}" if study.description.fold is not None else ""
    owner = _owner(study)
    known = "." if owner == "patient" else "; patients are not known, so that one may be in two of them."
    return (f"{made}{fold}, frozen before training; " if mode else "Splits frozen before training; ") + (
        f"no {owner} is in two of them, and evaluation refuses {owner}s that training saw{known}"
    )


def _model(study: Study) -> str:
    run = study.description
    names = [f"{network_words(name)} {architecture_words(run.networks[name])}" for name in run.names]
    return f"Networks: {', '.join(names)}; {_teaching(study)}."


def _teaching(study: Study) -> str:
    """What the students learned from, as the weights of their losses say."""
    knobs = study.knobs
    several = sum(name != NetworkName.TEACHER for name in study.description.names) > 1
    teacher = NetworkName.TEACHER in study.description.names and knobs.get("beta")
    sources = [("labels", knobs.get("alpha")), ("the teacher", teacher), ("each other", knobs.get("gamma") and several)]
    from_these = [word for word, weight in sources if weight]
    return (
        f"the students learned from {listed(from_these)}"
        if from_these
        else "nothing says what the students learned from"
    )


def _selection(study: Study) -> str:
    epoch = study.validation.metrics.get("best_epoch")
    return f"Weights of epoch {epoch}, which was best on the validation split." if epoch is not None else ""


def _intervals(study: Study) -> str:
    how = study.validation.metrics.get("bootstrap", {})
    if not how:
        return ""
    return f"95 % intervals by bootstrap over {how['unit']}s, {how['resamples']:,} resamples, percentiles."


def _prediction(study: Study) -> str:
    return f"Command: kdml-med predict {study.name} INPUT, of kdml_med {study.description.kdml_med}."


def _imbalance(study: Study) -> str:
    drawn = study.knobs.get("balance")
    if drawn is None:
        return ""
    return "Both classes were drawn equally often in training." if drawn else "Nothing: samples were drawn as they are."


def _output(study: Study) -> str:
    run = study.description
    if run.task is Task.DETECTION:
        return f"Boxes with a score from 0 to 1; ensemble of the students by “{run.fusion}”."
    return f"A probability for each tile; for each {run.level} their aggregation “{run.aggregation}”."


def _thresholds(study: Study) -> str:
    chosen = "Chosen on the validation split alone and frozen before any test"
    if study.description.task is Task.DETECTION:
        default = networks_by_default(study.validation.metrics)
        if len(default) == len(study.validation.metrics["networks"]):
            return f"The validation split could choose none: a score of {DEFAULT_THRESHOLD:g}."
        names = listed([network_words(name) for name in default]) if default else ""
        rest = f"; of {names}, for which none could be chosen, a score of {DEFAULT_THRESHOLD:g}" if names else ""
        return f"{chosen}: the score with the best F1{rest}."
    return f"{chosen}: 95 % sensitivity (rule-out), and Youden's index."


def _difference(study: Study) -> str:
    """Options of preparation that external data have otherwise than those of the training."""
    if study.dataset is None:
        return ""
    parts = []
    own = study.dataset.info.options
    for one in study.judged:
        if one.dataset is None or not _is_external(one):
            continue
        other = one.dataset.info.options
        names = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
        shown = ", ".join(name.replace("_", " ") for name in names[:_MOST_WORDS])
        parts.append(f"{one.title}: prepared {f'with other {shown}' if names else 'with the same options'}")
    return f"{'; '.join(parts)}." if parts else ""


def _code(study: Study) -> str:
    return f"Made with kdml_med {study.description.kdml_med}."


def _weights(study: Study) -> str:
    return f"The files of the weights of {counted(len(study.description.names), 'network')} are known by SHA-256."


def _quality(study: Study) -> str:
    if study.description.task is Task.DETECTION or not study.description.tile_options:
        return ""
    return "Tiles with too little tissue, too much background or pen, or no sharpness are left out, as in training."


def _cautions(study: Study) -> str:
    return "Trained or tested on generated data: nothing here says anything about patients." if study.synthetic else ""


def _blind(study: Study) -> str:
    return "The networks see no label of the patients that they are tested on."


def _indeterminate(study: Study) -> str:
    if study.description.task is Task.DETECTION:
        return "The index test has none: each score is above or below the threshold."
    return "The index test has none: each probability is above or below the threshold."


_FACTS: dict[str, Callable[[Study], str]] = {
    "aim": _aim,
    "data": _data,
    "centres": _centres,
    "preparation": _preparation,
    "missing": _missing,
    "outcome": _outcome,
    "predictors": _predictors,
    "input": _input,
    "counts": _counts,
    "partition": _partition,
    "model": _model,
    "selection": _selection,
    "intervals": _intervals,
    "prediction": _prediction,
    "imbalance": _imbalance,
    "output": _output,
    "thresholds": _thresholds,
    "difference": _difference,
    "code": _code,
    "weights": _weights,
    "quality": _quality,
    "cautions": _cautions,
    "blind": _blind,
    "indeterminate": _indeterminate,
}
