"""The MONAI workflow that a config is evaluated in: where its bundle lies, its settings, and how errors leave it.

MONAI gives an expression of a config nothing but the references that it names, does not tell it where the config lies,
accepts any override in silence, and wraps every error in one that says nothing. All of that is made up for here, and
works alike for ``python -m monai.bundle run``, ``monai.bundle.run(...)``, ``ConfigWorkflow`` and ``create_workflow``:
nothing is read from the command line, which may be that of another program.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from monai.bundle import ConfigComponent, ConfigExpression, ConfigParser, ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.utils import ensure_tuple

from kdml_med.bundle.folders import INSTALLED
from kdml_med.bundle.help import help_text
from kdml_med.bundle.knobs import KNOBS, Stage, refuse_flag_text
from kdml_med.bundle.settings import Settings, default_settings, knobs_of, unknown_setting
from kdml_med.engines.processes import end_together, is_main
from kdml_med.errors import ExitCode, InputError, foreseen
from kdml_med.keys import Task
from kdml_med.program import tell_ending

Found = TypeVar("Found")
Handler = TypeVar("Handler")

_SCRIPTS = "monai.bundle.scripts"
_FILE_VARIABLES = ("config_file", "config_file_")  # of MONAI's programs
_HELP, _PROCESSES = "help", "processes"
_TRACKING = {*DEFAULT_MLFLOW_SETTINGS["configs"], "output_dir"}
_TRACKED = "is_not_rank0"
"""Name in a config to which MONAI has added its handlers for MLflow; they are off where it is true."""


def collect_settings(task: str) -> Settings:
    """Settings of the config that calls this, checked; with ``--help`` on the command line they are printed instead.

    Values are put back into the config as they are checked (a run folder 2026 becomes a path), so that other parts of
    it get them in the same form. Hence this has to be the first thing that ``initialize`` asks for.

    Args:
        task: "classification" or "detection".

    Raises:
        InputError: an override has a name that no config knows, or a value makes no sense.
    """
    resolver = innermost(ReferenceResolver)
    if resolver is None:
        raise RuntimeError("collect_settings is for expressions of a MONAI config.")
    names = [name for name in resolver.items if name and "::" not in name and name != ConfigParser.meta_key]
    if _PROCESSES in names:  # those of multi_gpu_train.json: from here on one of them speaks
        resolver.get_resolved_content(_PROCESSES)
    stage: Stage = "inference" if "train" not in names else "evaluate" if "split" in names else "train"
    if _HELP in names and is_command():
        if is_main():
            print(help_text(Task(task), stage))
        raise SystemExit(int(ExitCode.OK))
    written = _written_names(resolver, names)
    check_names(names, written, task)
    _refuse_slips(resolver, names, task)
    if written.get("task", task) != task:
        raise InputError(f"--task is {task!r}, but this config is for {written['task']}: take the other bundle.")
    _check_texts(resolver)
    if _TRACKED in names:
        # Ours takes the place of MONAI's handlers, which cannot read a loss of several terms.
        resolver.resolved_content |= {_TRACKED: True, "tracking": "mlflow"}
    knobs = [knob for knob in knobs_of(Task(task), stage) if knob.name in names]
    # Plain values first: what is worked out from them, such as what a run says, would fail with words of its own.
    knobs.sort(key=lambda knob: _is_expression(resolver.items[knob.name].get_config()))
    for knob in knobs:
        resolver.resolved_content[knob.name] = knob.check(_work_out(resolver, knob.name))
    return Settings(
        Task(task),
        default_settings(Task(task), stage) | {knob.name: resolver.resolved_content[knob.name] for knob in knobs},
    )


def _refuse_slips(resolver: ReferenceResolver, names: Iterable[str], task: str) -> None:
    """Refuse names of somebody's own config, or of a parser filled by hand, that are a setting with a slip.

    Such a config may have names of its own; one that resembles a setting, and that nothing refers to, has no effect.
    """
    settings = [knob.name for knob in KNOBS if task in knob.tasks]
    texts = [text for item in resolver.items.values() if isinstance(text := item.get_config(), str)]
    for name in names:
        if name not in settings and get_close_matches(name, settings, n=1, cutoff=0.8):
            reference = re.compile(rf"@{re.escape(name)}\b")
            if not any(map(reference.search, texts)):
                raise unknown_setting(name, settings)


def _work_out(resolver: ReferenceResolver, name: str) -> Any:
    """Value of a setting, which can be an expression or a reference."""
    try:
        return resolver.get_resolved_content(name)
    except InputError:
        raise
    except Exception as error:  # of whatever a person wrote there
        written, cause = resolver.items[name].get_config(), error.__cause__ or error
        if not _is_expression(written):
            raise
        reason = (str(cause).splitlines() or [""])[0]
        raise InputError(f"--{name} is {written!r}, which gives {type(cause).__name__}: {reason}.") from error


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@"))


def _check_texts(resolver: ReferenceResolver) -> None:
    """Refuse the texts true and false wherever they stand."""
    for name, item in resolver.items.items():
        if not name.startswith(ConfigParser.meta_key):
            refuse_flag_text(name, item.get_config())


def check_names(names: Iterable[str], written: Mapping[str, Any], task: str) -> None:
    """Refuse settings that neither a config nor the list of settings knows.

    Args:
        names: top-level names of the config with its overrides.
        written: content of the config files.
        task: of the config.

    Raises:
        InputError: names the unknown one and the nearest known one.
    """
    # What training needs is in the list; a config has to name it only where it refers to it.
    knobs = [knob for knob in KNOBS if task in knob.tasks]
    listed = {knob.name for knob in knobs if "train" in knob.stages} if "train" in written else set()
    for name in names:
        if name not in listed and not _knows(written, name):
            known = [*written, *listed]
            raise unknown_setting(name, known, {knob.name for knob in knobs}.intersection(known), task=task)


def _knows(written: Mapping[str, Any], name: str) -> bool:
    """Whether a config has a name, or what a nested one ("optimizer#betas") is a part of."""
    if name in written:
        return True
    content: Any = written
    *path, last = name.replace("::", "#").split("#")
    for part in path:
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, Mapping) and part in content:
            content = content[part]
        else:
            return False
    if isinstance(content, list):
        return last.isdigit()
    # The last part may be new: an argument of a component that the config leaves at its default.
    return bool(path) and isinstance(content, Mapping) and (last in content or "_target_" in content)


def named_handler(handler: Handler) -> Handler:
    """A handler that other parts of a config refer to, as a component of an engine's list.

    MONAI's check of a bundle's properties wants components there, and stops at a reference.

    Args:
        handler: the part of the config.

    Returns:
        The same.
    """
    return handler


def find_root(name: str) -> str:
    """Folder of a bundle, wherever the config that calls this was started from.

    The first that fits: the folder above ``configs/`` of the config, the current folder, ``bundles/<name>`` below it.
    For a bundle inside an installed package it is the current folder: data and runs go below it.

    Args:
        name: the bundle's folder name.

    Raises:
        InputError: none of them holds ``configs/metadata.json``.
    """
    workflow = innermost(ConfigWorkflow)
    folders = [] if workflow is None else [Path(workflow.config_root_path)]
    folders += [file.parent for file in _named_files()]
    candidates = [folder.resolve().parent for folder in folders]
    candidates += [Path.cwd(), Path.cwd() / "bundles" / name, INSTALLED / name]
    for folder in candidates:
        if (folder / "configs" / "metadata.json").is_file():
            return str(Path.cwd() if folder.is_relative_to(INSTALLED) else folder)
    raise InputError(f"bundle {name!r} was not found near {Path.cwd()}: start in the repository root or in its folder.")


def read_configs(files: Sequence[Path]) -> dict[str, Any]:
    """Content of config files, later ones over earlier ones.

    Raises:
        InputError: one is missing or neither JSON nor YAML.
    """
    merged: dict[str, Any] = {}
    for file in files:
        try:
            merged |= ConfigParser.load_config_file(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read as a config: {error}.") from error
    return merged


def is_command() -> bool:
    """Whether this process is ``python -m monai.bundle``, so that a person reads its screen and exit code."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name in ("monai.bundle", "monai.bundle.__main__")


@contextlib.contextmanager
def errors_for_people(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into ``InputError``."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(str(error)) from error


def _frames() -> Iterator[FrameType]:
    """Frames of the calls that led here, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def innermost(kind: type[Found]) -> Found | None:
    """The object of this class whose method is running, which MONAI does not hand over."""
    for frame in _frames():
        found = frame.f_locals.get("self")
        if isinstance(found, kind):
            return found
    return None


def _named_files() -> list[Path]:
    """Config files that a function of MONAI was called with; none where a workflow was made by hand."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == _SCRIPTS:
            for variable in _FILE_VARIABLES:
                if frame.f_locals.get(variable) is not None:
                    return [Path(name) for name in ensure_tuple(frame.f_locals[variable])]
    return []


def _written_names(resolver: ReferenceResolver, names: Sequence[str]) -> dict[str, Any]:
    """Content of the config files in use, overrides not included."""
    # What `--tracking` adds to the config.
    tracking = dict.fromkeys(_TRACKING if "save_execute_config" in names else ())
    files = _named_files()
    if files:
        return tracking | read_configs(files)
    workflow = innermost(ConfigWorkflow)
    if workflow is None:
        return {name: resolver.items[name].get_config() for name in names}
    # It does not keep their names: those of its folder of which everything is there.
    folder = Path(workflow.config_root_path)
    used = [content for content in _configs_in(folder) if set(content) <= {*names, *_nested(content)}]
    return tracking | {name: value for content in used for name, value in content.items()}


def _configs_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Content of every file of a folder that can be a config."""
    for path in sorted(folder.iterdir()):
        if path.suffix.removeprefix(".") in ConfigParser.suffixes and path.stem != "metadata":
            with contextlib.suppress(OSError, ValueError):
                content = ConfigParser.load_config_file(path)
                if isinstance(content, dict):
                    yield content


def _nested(content: Mapping[str, Any]) -> set[str]:
    """Names that override a part below: they are merged into it, and so are no names of the merged config."""
    return {name for name in content if "#" in name or "::" in name}


def _let_errors_through() -> None:
    """Let errors for people through where MONAI would wrap them; a command ends with one in one line, as on Ctrl-C."""
    for owner, name in ((ConfigExpression, "evaluate"), (ConfigComponent, "instantiate")):
        original: Callable[..., Any] = getattr(owner, name)
        if not hasattr(original, "__wrapped__"):
            setattr(owner, name, _unwrapping(original))


def _unwrapping(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def unwrapping(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except RuntimeError as error:
            # Of several processes one says why.
            cause = None if error.__cause__ is None else end_together(error.__cause__)
            known = None if cause is None else foreseen(cause)
            if known is None:
                raise
            _end_command(known)
            raise known from known.__cause__ if known is cause else cause
        except KeyboardInterrupt as error:
            # Python notes that one has left the eval of MONAI, and would end with a signal instead of the exit code,
            # unless another evaluation follows.
            eval("None")
            end_together(error)
            _end_command(error)
            raise

    return unwrapping


def _end_command(error: BaseException) -> None:
    """End the process where it is a command; what was begun at other places of it ends with it."""
    if is_command():
        code = tell_ending(error)
        raise SystemExit(None if code is None else int(code))


_let_errors_through()
