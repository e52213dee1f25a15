"""The console command ``kdml-med``: a thin table of programs, none of which is imported before it is asked for."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from kdml_med import __version__
from kdml_med.errors import ExitCode, InputError
from kdml_med.program import Command, checked, new_app, start, tell_ending, unhindered_imports

_NAME = "kdml-med"
# What messages of the bundles and programs call options that have another name here.
_OPTIONS = {"--run_dir": "--run", "--dataset_dir": "--data", "--output_dir": "--out"}
_OPTIONS_OF = {"predict": {"--num_workers": "--workers", "--source": "INPUT", "--slides": "INPUT"}}


@dataclass(frozen=True)
class Entry:
    """One command: where its function is, and the line about it."""

    program: str
    function: str
    help: str
    panel: str

    def load(self) -> Command:
        """The function whose signature is the command line."""
        command: Command = getattr(import_module(f"kdml_med.programs.{self.program}"), self.function)
        return command


_TRY, _PREPARE, _LEARN, _USE, _COMPARE = "Try it", "Prepare data", "Train and evaluate", "Use", "Compare"
COMMANDS = {
    "demo": Entry("demo", "demo", "Everything on generated data, from slides to a prediction.", _TRY),
    "tile": Entry("tile_slides", "main", "Cut slides into tiles.", _PREPARE),
    "frames": Entry("prepare_frames", "main", "Store colonoscopy images and videos with their boxes.", _PREPARE),
    "import": Entry("import_tiles", "import_tiles", "Take tiles that exist already, without copying.", _PREPARE),
    "crops": Entry("cut_crops", "main", "Cut crops of polyps and mucosa from stored frames, as tiles.", _PREPARE),
    "split": Entry("make_splits", "command", "Decide which patients train, validate and test.", _PREPARE),
    "train": Entry("train", "train", "Train a teacher and its students on a dataset.", _LEARN),
    "evaluate": Entry("evaluate", "evaluate", "Figures of a run on a split, with intervals.", _LEARN),
    "report": Entry("report", "report", "A page about a run, or about a folder of experiments.", _LEARN),
    "predict": Entry("predict", "predict", "Apply a run to new slides, images or videos.", _USE),
    "export": Entry("export", "export", "Write a network as one file for other programs.", _USE),
    "compare": Entry("compare", "compare", "Train by a plan of arms and seeds, and compare them.", _COMPARE),
}


def main() -> None:
    """Run the command that the command line names."""
    with unhindered_imports():
        app, words = _app(sys.argv[1:])
    start(app, args=words, prog_name=_NAME)


def run_command(words: Sequence[str]) -> int:
    """Run one command in this process as if it had been typed, without loading libraries again.

    Args:
        words: of the command line after ``kdml-med``.

    Returns:
        Its exit code; what went wrong has been said.
    """
    app, words = _app(words)
    try:
        start(app, args=words, prog_name=_NAME)
    except SystemExit as ending:
        return int(ending.code or ExitCode.OK)


def _app(words: Sequence[str]) -> tuple[typer.Typer, list[str]]:
    """The application with the command that the words name, and the words as it knows them."""
    words = [_dashed(word) for word in words] or ["--help"]
    asked = next((word for word in words if not word.startswith("-")), None)
    app = new_app(help="Small medical image models by distillation and mutual learning.")
    app.callback()(_options)
    for name, entry in COMMANDS.items():
        command = (
            checked(_in_own_words(_load(entry), _OPTIONS | _OPTIONS_OF.get(name, {}))) if name == asked else _not_asked
        )
        about = None if name == asked else entry.help
        app.command(name, help=about, rich_help_panel=entry.panel)(command)
    return app, words


def _load(entry: Entry) -> Command:
    """Load a command; Ctrl-C while libraries are imported ends as it does later."""
    try:
        return entry.load()
    except KeyboardInterrupt as error:
        tell_ending(error)
        raise SystemExit(int(ExitCode.INTERRUPTED)) from error


def _in_own_words(command: Command, options: Mapping[str, str]) -> Command:
    """A command whose messages call options as they are called here."""

    def own_word(found: re.Match[str]) -> str:
        return options.get(found[0], found[0].replace("_", "-"))

    @functools.wraps(command)
    def worded(*args: Any, **kwargs: Any) -> int | None:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            raise InputError(re.sub(r"--[a-z]+(?:_[a-z]+)*\b", own_word, str(error))) from error

    return worded


def _dashed(word: str) -> str:
    """Options may be spelt as settings are: --max_epochs is --max-epochs."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if re.fullmatch(r"--[a-z][a-z0-9_-]*", name) else word


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda on: _version(on))
    ] = False,
) -> None:
    pass


def _version(on: bool) -> None:
    if on:
        print(f"kdml-med {__version__}")
        raise typer.Exit


def _not_asked() -> None:
    """Stands for a command in the list of all."""


if __name__ == "__main__":
    main()
