"""The command line of ``python -m monai.bundle run``: where the bundle lies, and whether the option names are known."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from kdml_med.errors import ExitCode, InputError

# Arguments of `monai.bundle run` itself; everything else on its command line overrides the config.
_RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "properties_path", "workflow_type",
}  # fmt: skip
# Keys of the configs that are no settings.
_NO_KNOBS = {"imports", "initialize", "run", "bundle_root", "network", "cohort", "trained", "handlers"}


def find_root(name: str, argv: Sequence[str] | None = None) -> str:
    """Folder of a bundle, wherever the command was started.

    MONAI does not tell a config where it lies. The first that fits: the folder above ``configs/`` of the first config
    file on the command line, the current folder, ``bundles/<name>`` below it.

    Args:
        name: the bundle's folder name.
        argv: command line; the process's own by default.

    Raises:
        SystemExit: none of them holds ``configs/metadata.json``.
    """
    candidates = [file.resolve().parent.parent for file in _config_files(_arguments(argv))]
    candidates += [Path.cwd(), Path.cwd() / "bundles" / name]
    for folder in candidates:
        if (folder / "configs" / "metadata.json").is_file():
            return str(folder)
    _fail(f"bundle {name!r} was not found near {Path.cwd()}: start in the repository root or in the bundle folder.")


def check_command_line(argv: Sequence[str] | None = None) -> None:
    """Refuse override names that no config file knows, and switches that would not do what they say.

    MONAI itself accepts any name in silence, and takes "false" for true.

    Looks only at commands that name a config file, so that use from Python is left alone.

    Raises:
        InputError: names the unknown override and the nearest known one, or the switch and how to write it.
    """
    arguments = _arguments(argv)
    files = _config_files(arguments)
    if not files:
        return
    merged: dict[str, Any] = {}
    for file in files:
        merged |= json.loads(file.read_text())
    for name, text in arguments.items():
        name = name.replace("::", "#")
        if text in ("true", "false"):
            # MONAI's command line would pass it on as text, and any text but the empty one counts as true.
            raise InputError(f"--{name} {text}: write {text.capitalize()}, with a capital letter.")
        if name in _RUN_ARGUMENTS or _knows(merged, name):
            continue
        known = sorted(key for key, value in merged.items() if key not in _NO_KNOBS and not isinstance(value, dict))
        near = get_close_matches(name, [*merged, *_RUN_ARGUMENTS], n=1, cutoff=0.5)
        hint = f" Did you mean --{near[0]}?" if near else ""
        raise InputError(f"unknown option --{name}.{hint} Known: {', '.join(known)}.")


def _knows(merged: Mapping[str, Any], name: str) -> bool:
    content: Any = merged
    *path, last = name.split("#")
    if name in merged:
        return True
    for part in path:
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        else:
            return False
    # The last part of a nested name may be new: an argument of a component that the config leaves at its default.
    return bool(path) and (isinstance(content, dict) or (isinstance(content, list) and last.isdigit()))


def _arguments(argv: Sequence[str] | None) -> dict[str, str]:
    """Named arguments of a command line, including those from --args_file."""
    words = list(sys.argv[1:] if argv is None else argv)
    named: dict[str, str] = {}
    for position, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        following = words[position + 1] if position + 1 < len(words) else ""
        named[name] = value if equals else following
    if "args_file" in named and Path(named["args_file"]).is_file():
        defaults = json.loads(Path(named["args_file"]).read_text())
        named = {key: value if isinstance(value, str) else repr(value) for key, value in defaults.items()} | named
    return named


def _config_files(arguments: Mapping[str, str]) -> list[Path]:
    value = arguments.get("config_file", "")
    names: Any = value
    if value.startswith(("[", "(")):
        with contextlib.suppress(ValueError, SyntaxError):
            names = ast.literal_eval(value)
        if isinstance(names, str):  # fire also takes unquoted lists
            names = [part.strip(" '\"") for part in value.strip("[]()").split(",")]
    files = [Path(name) for name in ([names] if isinstance(names, str) else names) if name]
    return [file for file in files if file.is_file() and file.suffix == ".json"]


@contextlib.contextmanager
def errors_for_people(*kinds: type[Exception]) -> Iterator[None]:
    """Turn ``InputError``, and errors of these kinds, into one line on standard error and ``ExitCode.BAD_INPUT``."""
    caught: tuple[type[Exception], ...] = (InputError, *kinds)
    try:
        yield
    except caught as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(int(ExitCode.BAD_INPUT))
