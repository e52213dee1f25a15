"""How a training or an evaluation came about: the command, the versions of what computed, data and weights."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdml_med.bundle.settings import Settings
from kdml_med.engines.processes import launched, launcher
from kdml_med.errors import InputError
from kdml_med.networks.cohort import Cohort
from kdml_med.networks.weights import same_weights
from kdml_med.runs import EVALUATION_FILE, RunDescription, hash_checkpoints, load_cohort
from kdml_med.runs.weights import withdraw_figures
from kdml_med.storage.files import write_json
from kdml_med.storage.manifest import dataset_identity

_LIBRARIES = (
    "kdml_med",
    "torch",
    "monai",
    "pytorch-ignite",
    "simplejpeg",  # and OpenCV: pixels of batches
    "opencv-python-headless",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
)
_OWN_COMMAND = "kdml-med"
_CONTINUED = "continued"


def made_by(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The command and the versions of this process, as files of results record them.

    Args:
        before: what the same file recorded so far, of a training that now goes on. Its command and versions stay, and
            this process is added to those that went on, unless it is a repetition of the last one.

    Returns:
        "command", one line; "versions" by name; and "continued", a list of the same, of a training that others went on
        with.
    """
    own: dict[str, Any] = {"command": command_line(), "versions": _versions()}
    if not before:
        return own
    first = {name: value for name, value in before.items() if name != _CONTINUED}
    later = before.get(_CONTINUED)
    runs = [first, *(later if isinstance(later, list) else [])]
    later = runs[1:] if runs[-1] == own else [*runs[1:], own]
    return first | ({_CONTINUED: later} if later else {})


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def command_line() -> str:
    """The command of this process as a person can type it again, from the same folder."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = words_to_type(sys.argv, sys.orig_argv, None if spec is None else spec.name)
    return words if launched() == 1 else f"{launcher()} {words.removeprefix('python ')}"


def words_to_type(arguments: Sequence[str], original: Sequence[str], module: str | None) -> str:
    """A command line without the places where a machine keeps its programs.

    Args:
        arguments: as ``sys.argv``.
        original: as ``sys.orig_argv``.
        module: name of the module that Python was started with (``-m``); None for a file, a text or nobody.
    """
    program = Path(arguments[0]).name.removesuffix(".exe") if arguments else ""
    if program == _OWN_COMMAND:
        return shlex.join([_OWN_COMMAND, *arguments[1:]])
    if module is not None and module != "__main__":
        return shlex.join(["python", "-m", module.removesuffix(".__main__"), *arguments[1:]])
    return shlex.join(["python", *original[1:]])


def record_evaluation(settings: Settings, network: Cohort | None = None) -> None:
    """Write evaluation.json beside the results: which data and weights they are of, and how they came about.

    Args:
        settings: of the config of an evaluation that is done.
        network: that was evaluated; None where an earlier config does not say it.

    Raises:
        InputError: a file of the run or of the dataset is missing, or the run has other weights now than those that
            were evaluated; then what vouches for the evaluation is taken away.
    """
    run_dir, dataset_dir = Path(settings["run_dir"]), Path(settings["dataset_dir"])
    # Before the weights are compared, so that it is known of what they are.
    weights = hash_checkpoints(run_dir, RunDescription.read(run_dir).names)
    if network is not None and not _has_weights_of(run_dir, network):
        withdraw_figures(settings["output_dir"])
        raise InputError(
            f"{run_dir} has other weights now than those that were evaluated, because its training went on meanwhile: "
            "evaluate again when it has ended."
        )
    content = {
        "dataset": dataset_identity(dataset_dir),
        "dataset_dir": str(dataset_dir.resolve()),
        "split": settings["split"],
        "fold": settings["fold"],  # one is refused where the dataset has no folds
        "weights": weights,
        **made_by(),
    }
    write_json(Path(settings["output_dir"]) / EVALUATION_FILE, content)


def _has_weights_of(run_dir: Path, network: Cohort) -> bool:
    """Whether the networks that were evaluated, which may be some of the run's, are as they lie there now."""
    used = {name: value.cpu() for name, value in network.state_dict().items()}
    now = load_cohort(run_dir).state_dict()
    # In the numbers that were evaluated: an override may have cast them.
    return same_weights({name: now[name].to(used[name].dtype) for name in used.keys() & now.keys()}, used)
