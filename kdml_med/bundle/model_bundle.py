"""A finished run as a MONAI bundle that stands alone: weights, configs, metadata and a model card."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from monai.data import save_net_with_metadata

from kdml_med.bundle.folders import BUNDLES, bundle_dir
from kdml_med.data.frames import input_size
from kdml_med.deploy.model_metadata import METADATA_FILE, answer_metadata
from kdml_med.deploy.model_network import AnswerNetwork, traced_network
from kdml_med.errors import InputError
from kdml_med.keys import NetworkName, Task
from kdml_med.networks.published import IMAGENET
from kdml_med.networks.registry import architecture_words
from kdml_med.report.caution import caution_of
from kdml_med.report.tables import markdown_text
from kdml_med.runs import (
    METRICS_FILE,
    SETTINGS_FILE,
    TRAIN_AGAIN,
    RunDescription,
    evaluated_dataset,
    is_other_data,
    load_network,
    networks_by_default,
    read_run_json,
    read_thresholds,
    tell_other_weights,
)
from kdml_med.storage.files import write_atomically, write_json
from kdml_med.storage.locks import sole_user
from kdml_med.storage.reading import take
from kdml_med.words import GENERATED_FIGURES, NO_DEVICE

_ROOM = "kdml_med.deploy.model_network"
_INFERENCE_FILE = "inference.json"
_NETWORK = f"{_ROOM}.traced_network"
"""What is called for the network; no other bundle calls it, and so it marks those that were exported."""
_PLACES = ("initial_weights", "teacher_checkpoint")
"""Settings that name files of the machine that trained."""


def write_model_bundle(
    run_dir: str | Path, out_dir: str | Path, *, network: str = NetworkName.ENSEMBLE.value, split: str = "test"
) -> Path:
    """Write a bundle that passes the checks of MONAI's model zoo.

    Args:
        run_dir: folder of the run.
        out_dir: folder of the bundle; what an earlier export wrote there is written over, any other bundle is not.
        network: "ensemble", "student_0" and so on, or "teacher".
        split: whose evaluation the model card tells of, where there is one; else that of the validation split.

    Returns:
        The folder of the bundle.

    Raises:
        InputError: no such run or network, the ensemble cannot be one network, the evaluation is of other weights, or
            the folder cannot be used.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    run = RunDescription.read(run_dir)
    parts = _parts(run, run_dir, network)
    _check_folder(out_dir)
    definition = _definition(run, parts)
    metrics = _metrics(run_dir, split, parts)
    threshold = read_thresholds(run_dir).get(network) if run.task is Task.DETECTION else None
    chosen = threshold is None or network not in networks_by_default(read_run_json(run_dir, METRICS_FILE))
    metadata = answer_metadata(run, network) | {"eval_metrics": _figures(run, metrics, network)}
    training = _train(run, run_dir)
    with sole_user(out_dir):
        (out_dir / "configs").mkdir(parents=True, exist_ok=True)
        # First: where the rest is cut off, the folder is known as one of ours and can be written again.
        write_json(out_dir / "configs" / _INFERENCE_FILE, _inference(run, definition, threshold))
        write_json(out_dir / "configs" / METADATA_FILE, metadata)
        write_json(out_dir / "configs" / "train.json", training)
        templates = bundle_dir(run.task)
        shutil.copyfile(templates / "configs" / "logging.conf", out_dir / "configs" / "logging.conf")
        shutil.copyfile(templates / "LICENSE", out_dir / "LICENSE")
        _write_models(run_dir, out_dir / "models", parts, definition, metadata)
        (out_dir / "docs").mkdir(exist_ok=True)
        deciding = _deciding(threshold, chosen=chosen)
        card = _model_card(run, network, parts, metrics, deciding, metadata, training)
        write_atomically(out_dir / "docs" / "README.md", card.encode())
    return out_dir


def _check_folder(out_dir: Path) -> None:
    """Refuse a folder that holds something else than what an earlier export wrote.

    Bundles of people's own, and those that trainings read, have the same layout as an exported one.
    """
    if any(out_dir.resolve() == bundle_dir(task).resolve() for task in BUNDLES):
        raise InputError(f"{out_dir} is kdml_med's own bundle, which every training reads: name another folder.")
    if out_dir.is_dir() and any(out_dir.iterdir()) and not _is_exported(out_dir):
        raise InputError(f"{out_dir} holds other things than a bundle that was exported: name another folder.")


def _is_exported(folder: Path) -> bool:
    try:
        config = json.loads((folder / "configs" / _INFERENCE_FILE).read_text())
        return bool(config["network_def"]["_target_"] == _NETWORK)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _parts(run: RunDescription, run_dir: Path, network: str) -> list[str]:
    parts = list(run.choose(network))
    if run.task is Task.DETECTION and len(parts) > 1 and run.fusion != "anchors":
        raise InputError(
            f"the ensemble of {run_dir} joins the boxes of its students by weighted box fusion, which is no network: "
            "name one student, such as student_0."
        )
    return parts


def _definition(run: RunDescription, parts: list[str]) -> dict[str, Any]:
    """Arguments of ``AnswerNetwork``."""
    own = {} if run.task is Task.DETECTION else {"average": run.ensemble_average}
    return {
        "networks": {name: run.networks[name] for name in parts},
        "task": str(run.task),
        "num_classes": run.num_classes,
        "image_size": run.image_size,
        **own,
    }


def _write_models(
    run_dir: Path, folder: Path, parts: list[str], definition: dict[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write model.pt and model.ts."""
    folder.mkdir(exist_ok=True)
    network = AnswerNetwork(**definition)
    for name in parts:
        network.networks[name].load_state_dict(load_network(run_dir, name).state_dict())
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    write_atomically(folder / "model.pt", buffer.getvalue())
    traced = traced_network(**definition)
    traced.load_state_dict(network.state_dict())
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        save_net_with_metadata(
            traced, buffer, include_config_vals=False, append_timestamp=False, meta_values=dict(metadata)
        )
    write_atomically(folder / "model.ts", buffer.getvalue())


def _inference(run: RunDescription, definition: dict[str, Any], threshold: float | None) -> dict[str, Any]:
    """Config that reads a folder of images and writes a table; MONAI's own parts where it has them."""
    deciding = {} if threshold is None else {"threshold": threshold}
    return {
        "imports": ["$import pathlib", "$import torch", f"$import {_ROOM} as kdml"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "batch_size": 16,
        "image_size": run.image_size,
        "classes": run.classes,
        **deciding,
        "network_def": {"_target_": _NETWORK, **definition, "image_size": "@image_size"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": f"{_ROOM}.ReadImaged", "task": str(run.task), "image_size": "@image_size"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$kdml.image_files(@dataset_dir)",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": "@batch_size"},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {
                "_target_": f"{_ROOM}.AnswerTable",
                "path": "$@output_dir + '/predictions.csv'",
                "task": str(run.task),
                "classes": "@classes",
                **{name: f"@{name}" for name in deciding},
            },
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "val_handlers": "@handlers",
            "decollate": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _train(run: RunDescription, run_dir: Path) -> dict[str, Any]:
    """The training config with the settings of the run, and with the parts that MONAI's zoo looks for by name."""
    config: dict[str, Any] = json.loads((bundle_dir(run.task) / "configs" / "train.json").read_text())
    settings = read_run_json(run_dir, SETTINGS_FILE)
    knobs = take(settings, "knobs", dict[str, Any], run_dir / SETTINGS_FILE, remedy=TRAIN_AGAIN)
    for name, value in knobs.items():
        if name not in config:  # of an earlier version
            continue
        config[name] = _without_folders(value) if name in _PLACES else value
    config |= {"dataset_dir": "$@bundle_root + '/data'", "max_epochs": settings["free"].get("max_epochs", 1)}
    source = "frames" if run.task is Task.DETECTION else "tiles"
    for part in ("train", "validate"):
        dataset = config[part]["dataset"]
        rest = {name: value for name, value in dataset.items() if name not in ("_target_", "dataset_dir")}
        config[part]["dataset"] = {"_target_": f"{_ROOM}.{source}", "data": "@dataset_dir", **rest}
    config["validate"]["handlers"] = []
    config["validate"]["evaluator"]["val_handlers"] = "@validate#handlers"
    return config


def _without_folders(value: Any) -> Any:
    """Names of files without the folders of the machine that trained.

    They stay: without them the config would train something else. With them it names the file that it needs.
    """
    if isinstance(value, Mapping):
        return {name: _without_folders(path) for name, path in value.items()}
    return PurePath(value).name if isinstance(value, str) else value


def _metrics(run_dir: Path, split: str, parts: list[str]) -> dict[str, Any] | None:
    """Figures of a split; those of training, on the validation split, where it was not evaluated."""
    for folder in (run_dir / f"evaluation_{split}", run_dir):
        if (folder / METRICS_FILE).is_file():
            if problem := tell_other_weights(run_dir, folder, parts):
                raise InputError(problem)
            if is_other_data(evaluated_dataset(run_dir, folder), evaluated_dataset(run_dir, run_dir)):
                raise InputError(
                    f"{folder} is of another dataset than {run_dir} was trained on: move it, and evaluate the {split} "
                    "split of the run's own."
                )
            return read_run_json(folder, METRICS_FILE)
    return None


def _rows(run: RunDescription, metrics: Mapping[str, Any] | None, network: str) -> dict[str, tuple[float, Any]]:
    """Figures of a network with their intervals."""
    if metrics is None or network not in metrics.get("networks", {}):
        return {}
    own = metrics["networks"][network]
    if run.task is Task.DETECTION:
        found = {name: (own[name], own[f"{name}_ci95"]) for name in ("ap", "ap50", "ap75", "f1")}
    else:
        found = {
            f"{level}_auroc": (own[level]["auroc"], own[level].get("auroc_ci95"))
            for level in ("tile", str(metrics["level"]))
        }
    return {name: value for name, value in found.items() if value[0] is not None}


def _figures(run: RunDescription, metrics: Mapping[str, Any] | None, network: str) -> dict[str, float]:
    return {name: round(value, 4) for name, (value, _) in _rows(run, metrics, network).items()}


def _model_card(
    run: RunDescription,
    network: str,
    parts: list[str],
    metrics: Mapping[str, Any] | None,
    deciding: list[str],
    metadata: Mapping[str, Any],
    training: Mapping[str, Any],
) -> str:
    height, width = input_size(run.image_size)
    detection = run.task is Task.DETECTION
    lines = [
        f"# {markdown_text(metadata['name'])}",
        "",
        markdown_text(metadata["description"]),
        "",
        f"**{NO_DEVICE}**",
        "",
        "| | |",
        "|---|---|",
        f"| network | {network}: {', '.join(f'{name} ({architecture_words(run.networks[name])})' for name in parts)} |",
        f"| classes | {markdown_text(run.classes[-1] if detection else str(metadata['label_classes']))} |",
        f"| input | {markdown_text(metadata['image_classes'])} |",
        f"| output | {markdown_text(metadata['pred_classes'])} |",
        f"| trained with | kdml_med {run.kdml_med}, {len(run.seen_patients['train'])} patients or sequences for "
        f"training, {len(run.seen_patients['val'])} for validation |",
        "",
        "## Performance",
        "",
        *_performance(run, metrics, network),
        *deciding,
        "",
        "## Use",
        "",
        "The configs refer to the package kdml_med, which has to be installed in the version above. From this folder:",
        "",
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES",
        "",
        f"reads every image of a folder and writes `eval/predictions.csv`. {_preparation(run)} Without the package, "
        f"`models/model.ts` takes normalised images, float32 [batch, 3, {height}, {width}].",
        "",
        "Training again with the settings of this run, on a dataset folder of kdml_med:",
        "",
        "    python -m monai.bundle run --config_file configs/train.json --dataset_dir DATA --run_dir RUN",
        "",
        *_started_from(training),
        "## Limits",
        "",
        "Figures hold for patients like those of the evaluation. Other hospitals, scanners or processors of video, "
        "other stains and other patients need an evaluation of their own. Whether these weights may be passed on is "
        "decided by the licence of the data they were trained on, not by the licence of this bundle.",
        "",
        "## References",
        "",
        *(f"- {reference}" for reference in metadata["references"]),
        "",
    ]
    return "\n".join(lines)


def _started_from(training: Mapping[str, Any]) -> list[str]:
    """What of the training is not in the bundle."""
    files: list[Any] = []
    for name in _PLACES:
        value = training.get(name)
        files += value.values() if isinstance(value, Mapping) else [value]
    named = sorted({file for file in files if isinstance(file, str) and file != IMAGENET})
    if not named:
        return []
    shown = ", ".join(f"`{markdown_text(name)}`" for name in named)
    return [
        f"That training started from files that are not part of this bundle: {shown}. Name yours in the config.",
        "",
    ]


def _performance(run: RunDescription, metrics: Mapping[str, Any] | None, network: str) -> list[str]:
    rows = _rows(run, metrics, network)
    if not rows or metrics is None:
        return ["Not evaluated."]
    lines = [f"Split {metrics['split']}; intervals by bootstrap over {metrics['bootstrap']['unit']}s.", ""]
    lines += ["| figure | value | 95 % interval |", "|---|---|---|"]
    for name, (value, interval) in rows.items():
        shown = "none" if not interval or interval[0] is None else f"{interval[0]:.3f} – {interval[1]:.3f}"
        lines.append(f"| {name} | {value:.3f} | {shown} |")
    if warned := caution_of(metrics):
        lines += ["", f"**Caution.** {markdown_text(warned)}"]
    if run.synthetic:
        lines += ["", GENERATED_FIGURES]
    return lines


def _deciding(threshold: float | None, *, chosen: bool) -> list[str]:
    """The score from which a box counts, and who chose it."""
    if threshold is None:
        return []
    who = "training chose it on its validation split" if chosen else "the validation split could choose none"
    return [
        "",
        f"A box counts from a score of {threshold:.4f} on, as for F1: {who}. "
        "`above_threshold` in `eval/predictions.csv` says which boxes these are; weaker ones stand there, too.",
    ]


def _preparation(run: RunDescription) -> str:
    if run.task is Task.DETECTION:
        return "Frames have to be cut to the field of the endoscope as `kdml_med` prepares them."
    scale = f" of {run.mpp:g} µm/px" if run.mpp else ""
    stain = "" if run.stain == "none" else f", normalised with {run.stain}"
    return f"Images are tiles{scale}{stain}."
