"""The settings as text: what ``--help`` prints, and the tables of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from kdml_med.bundle.settings import ALL_STAGES, CLASSIFICATION, KNOBS, TRAIN, Knob, Shown, Stage, knobs_of
from kdml_med.keys import Task


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
            lines += [f"      {_plain(knob.help)}.", f"      {_plain(knob.kind.words)}"]
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
    first, *others = dict.fromkeys(_default_words(knob, task, code="`") for task in knob.tasks)
    shown = f"MSI {first}, polyps {others[0]}" if others else first
    return f"| `{knob.name}` | {where} | {shown} | {knob.kind.words} | {knob.help} |"


def _default_words(knob: Knob, task: Task, *, code: str) -> str:
    default = knob.default_of(task)
    return (
        (default.words if code else _plain(default.words)) if isinstance(default, Shown) else f"{code}{default}{code}"
    )


def _plain(text: str) -> str:
    """Text without Markdown: code marks, and links but for their words."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def page_with_tables(page: str) -> str:
    """The page of settings with its tables made anew between the two marks."""
    before, begin, rest = page.partition("<!-- settings: begin -->\n")
    _, end, after = rest.partition("<!-- settings: end -->")
    return f"{before}{begin}\n{settings_tables()}\n\n{end}{after}"


def write_page(path: Path) -> None:
    """Make the tables of the page of settings anew."""
    path.write_text(page_with_tables(path.read_text()))
