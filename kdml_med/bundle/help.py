"""The settings as text: what ``--help`` prints, and the tables of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kdml_med.bundle.knobs import ALL_STAGES, CLASSIFICATION, KNOBS, TRAIN, Knob, Shown, Stage
from kdml_med.bundle.settings import knobs_of
from kdml_med.keys import Task
from kdml_med.storage.files import write_atomically

_MARKED = re.compile(r"(<!-- settings(?: of (\w+))?: begin -->\n).*?(<!-- settings: end -->)", re.DOTALL)


def help_text(task: Task, stage: Stage) -> str:
    """What ``--help`` prints: every setting with its values, default and meaning."""
    lines = [
        "Settings of this config, as --name value. Values are read as Python: True, 0.001, \"[256,320]\", '$None'."
    ]
    knobs = knobs_of(task, stage)
    for group in dict.fromkeys(knob.group for knob in knobs):
        lines += ["", f"{group}:"]
        for knob in (one for one in knobs if one.group == group):
            lines.append(f"  --{knob.name}  ({_default_words(knob, task, code='')})")
            lines += [f"      {plain(knob.help)}.", f"      {plain(knob.kind.words)}"]
    return "\n".join(lines)


def settings_tables() -> str:
    """The tables of the page of settings in the documentation, Markdown."""
    parts = []
    for group in dict.fromkeys(knob.group for knob in KNOBS):
        rows = ["| setting | in | default | values | meaning |", "|---|---|---|---|---|"]
        rows += [_row(knob) for knob in KNOBS if knob.group == group]
        parts.append(f"### {group}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _row(knob: Knob) -> str:
    where = {ALL_STAGES: "all", TRAIN: "train"}.get(knob.stages, ", ".join(knob.stages))
    if len(knob.tasks) == 1:
        where += " (MSI)" if knob.tasks == CLASSIFICATION else " (polyps)"
    return f"| `{knob.name}` | {where} | {defaults_words(knob, code='`')} | {knob.kind.words} | {knob.help} |"


def defaults_words(knob: Knob, *, code: str = "") -> str:
    """The default, or that of each task; ``code`` stands around a value."""
    first, *others = dict.fromkeys(_default_words(knob, task, code=code) for task in knob.tasks)
    return f"MSI {first}, polyps {others[0]}" if others else first


def _default_words(knob: Knob, task: Task, *, code: str) -> str:
    default = knob.default_of(task)
    return (default.words if code else plain(default.words)) if isinstance(default, Shown) else f"{code}{default}{code}"


def training_table(task: Task) -> str:
    """The table of a bundle's own page: settings of its training, Markdown without links."""
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for knob in KNOBS:
        if task in knob.tasks and "train" in knob.stages:
            cells = [f"`{knob.name}`", _default_words(knob, task, code="`"), knob.kind.words, _without_links(knob.help)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def plain(text: str) -> str:
    """Text without Markdown."""
    return _without_links(text).replace("`", "")


def _without_links(text: str) -> str:
    """Text with the words of links only: where they lead depends on the page."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def page_with_tables(page: str) -> str:
    """A page with its tables made anew, each between its two marks: of all settings, or of those of one training."""

    def table(found: re.Match[str]) -> str:
        begin, task, end = found.groups()
        return f"{begin}\n{settings_tables() if task is None else training_table(Task(task))}\n\n{end}"

    return _MARKED.sub(table, page)


def write_pages(paths: Iterable[str | Path]) -> None:
    """Make the tables of pages anew."""
    for path in map(Path, paths):
        write_atomically(path, page_with_tables(path.read_text()).encode())
