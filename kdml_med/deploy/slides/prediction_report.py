"""What a prediction of slides did, and what it says to a person on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kdml_med.deploy.pictures.heatmap import HEATMAP_FILE
from kdml_med.deploy.slides.prediction_folder import PROBABILITY, slide_dir
from kdml_med.deploy.slides.prediction_tables import SEEN_IN
from kdml_med.deploy.wording import three_digits
from kdml_med.errors import ExitCode
from kdml_med.keys import NetworkName
from kdml_med.runs import PATIENTS_FILE
from kdml_med.storage.manifest import FAILURES_FILE
from kdml_med.words import RESEARCH_ONLY, counted, first_lines, named_failures, printable, verb

_ANSWERS = 20
_NAME_LETTERS = 40  # longer names push the rest of their line to the right


@dataclass
class PredictionReport:
    """What a run did.

    Attributes:
        output_dir: where everything is.
        done: slides predicted by this run.
        skipped: slides that an earlier run had finished.
        remade: slides that were there, predicted from something else, and what is different.
        failures: (file name, reason) of slides that have a problem.
        absent: (slide or patient, reason) of rows of the label table that ask for a slide which is not there.
        left_out: pictures of slides beside them, which are no slides, (name, reason).
        slides: predicted, in the whole folder.
        patients: one row for each patient or slide, the content of patients.csv.
        tiles: in the whole folder.
        pictures: files with pictures of each slide, by slide.
        notes: what else a person should know, in words.
        slides_of: names of the slides of each row of patients.csv, by its first column.
        positive: name of the class that probabilities are of.
        network: whose probabilities a person is shown.
    """

    output_dir: Path
    done: int = 0
    skipped: int = 0
    remade: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    absent: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    slides: int = 0
    patients: pd.DataFrame = field(default_factory=pd.DataFrame)
    tiles: int = 0
    pictures: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    positive: str = ""
    network: str = NetworkName.ENSEMBLE.value
    slides_of: dict[str, list[str]] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """Of a program that did this."""
        return ExitCode.SOME_FAILED if self.failures or self.absent else ExitCode.OK

    def lines(self) -> list[str]:
        """What to tell a person."""
        problems = [*self.failures, *self.absent]
        counts = [f"{self.done} predicted", f"{self.skipped} finished before", counted(len(problems), "problem")]
        return [
            f"{self.output_dir}: {counted(self.slides, 'slide')}, {counted(self.tiles, 'tile')}; {', '.join(counts)}",
            *first_lines([f"made anew: {name} ({reason})" for name, reason in self.remade.items()]),
            *self._answers(),
            *first_lines(self.notes),
            *named_failures(problems, where=self.output_dir / FAILURES_FILE),
            f"{RESEARCH_ONLY}.",
        ]

    def _answers(self) -> list[str]:
        """The first rows of patients.csv, each with its heat map."""
        if self.patients.empty:
            return []
        table = self.patients.head(_ANSWERS)
        names = table.iloc[:, 0].map(str)
        shown = names.map(printable)
        width = min(_NAME_LETTERS, max(map(len, shown)))
        values = table[f"{PROBABILITY}{self.network}"].map(three_digits)
        lines = [f"Probability of {printable(self.positive)} ({self.network}):"]
        for name, text, value in zip(names, shown, values, strict=True):
            lines.append(f"  {text.ljust(width)}  {value:>6}  {self._tell_map(self.slides_of[name])}".rstrip())
        left = len(self.patients) - len(table)
        lines += [f"  and {left:,} more, in {self.output_dir / PATIENTS_FILE}"] if left else []
        return [*lines, *tell_seen(self.patients[SEEN_IN])]

    def _tell_map(self, slides: Sequence[str]) -> str:
        count = "" if len(slides) == 1 else counted(len(slides), "slide")
        drawn = [name for name in slides if HEATMAP_FILE in self.pictures.get(name, [])]
        first = [str(slide_dir(self.output_dir, drawn[0]) / HEATMAP_FILE)] if drawn else []
        return ", first ".join([count, *first] if count else first)


def tell_seen(seen_in: pd.Series) -> list[str]:
    """A warning where patients were seen in training; nothing where none was.

    Args:
        seen_in: for each patient or slide, "train", "val" or None.
    """
    count = int(seen_in.notna().sum())
    if not count:
        return []
    return [
        f"Caution: {count:,} of {len(seen_in):,} {verb(count, 'was', 'were')} used in training this run, by their "
        f"names (column {SEEN_IN} of {PATIENTS_FILE}): their probabilities say nothing of how well it does on others."
    ]
